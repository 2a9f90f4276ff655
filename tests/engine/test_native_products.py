"""The kernel's products are those of float64, and the bits of a row do not depend on its batch."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from cluster.compiled import CompileError
from engine.cpu_kernels import native_products
from engine.cpu_kernels.native_products import NativeMatrix
from engine.layers import linear
from engine.layers.linear import Product, native_serves, products_for

# Outputs, inputs: whole panels, parts of one, several parts of the inputs.
SHAPES = [(64, 32), (128, 512), (1, 1), (70, 50), (33, 1), (200, 1300), (65, 513)]
ROWS = (1, 2, 3, 5, 6, 7, 16, 20, 95, 96, 97, 300)

torch.set_num_threads(1)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(1)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def wanted(x: Tensor, weight: Tensor, bias: Tensor, scales: Tensor | None = None) -> Tensor:
    product = x.double() @ weight.double().t()
    return (product if scales is None else product * scales) + bias


def assert_near(found: Tensor, right: Tensor, num_inputs: int) -> None:
    assert found.dtype is torch.float32
    # Roundings of a chain of additions grow as its length does, at the worst.
    torch.testing.assert_close(found.double(), right, atol=2e-6 * num_inputs**0.75, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_multiplies(shape: tuple[int, int], dtype: torch.dtype, threads: None) -> None:
    weight, bias = drawn(*shape).to(dtype), drawn(shape[0])
    matrix = NativeMatrix(weight, bias)
    for rows in ROWS:
        x = drawn(rows, shape[1])
        assert_near(matrix.of(x), wanted(x, weight, bias), shape[1])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_multiplies_by_scaled_bytes(shape: tuple[int, int], threads: None) -> None:
    weight = (drawn(*shape) * 50).clamp(-127, 127).to(torch.int8)
    bias, scales = drawn(shape[0]), drawn(shape[0]).abs() / 50
    matrix = NativeMatrix(weight, bias, scales)
    for rows in ROWS:
        x = drawn(rows, shape[1])
        assert_near(matrix.of(x), wanted(x, weight, bias, scales), 2 * shape[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_a_row_has_the_same_bits_in_any_batch(dtype: torch.dtype) -> None:
    matrix = NativeMatrix((drawn(130, 1100) * 9).to(dtype), drawn(130), drawn(130))
    x = drawn(300, 1100)
    whole = matrix.of(x)
    for rows in ROWS:
        assert torch.equal(matrix.of(x[:rows]), whole[:rows])
        assert torch.equal(matrix.of(x[300 - rows :]), whole[300 - rows :])


def test_rows_that_lie_apart_are_taken() -> None:
    weight = drawn(64, 32)
    x = drawn(32, 5).t()
    assert_near(NativeMatrix(weight, None).of(x), wanted(x, weight, torch.zeros(1)), 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_it_is_found_right(dtype: torch.dtype) -> None:
    assert native_serves(dtype)


def test_it_is_no_candidate_where_it_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise CompileError("no C++ compiler")

    assert Product.NATIVE in products_for(torch.float32, torch.device("cpu"))
    assert Product.NATIVE not in products_for(torch.bfloat16, torch.device("cpu"))
    monkeypatch.setattr(linear, "native_serves", native_serves.__wrapped__)
    monkeypatch.setattr(native_products, "library", missing)
    native_products._kernel.cache_clear()
    assert Product.NATIVE not in products_for(torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("factor", [1.01, torch.nan])
def test_it_is_none_where_it_computes_something_else(
    factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = NativeMatrix.of
    monkeypatch.setattr(NativeMatrix, "of", lambda *args: of(*args) * factor)
    monkeypatch.setattr(linear, "native_serves", native_serves.__wrapped__)
    assert Product.NATIVE not in products_for(torch.float32, torch.device("cpu"))
