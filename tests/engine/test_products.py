"""A matrix is stored for what is fastest with it here, in one copy where one serves."""

from pathlib import Path

import pytest
import torch

from cluster.measurements import Measurements
from engine.checkpoint import load_spec
from engine.config import EngineConfig
from engine.engine import Engine
from engine.layers.linear import (
    CLASS_ROWS,
    NUM_CLASSES,
    Choice,
    Product,
    make_linear,
    products_for,
    uniform,
)
from engine.layers.products import Shape, choose_products, fastest, told
from engine.layers.weights import matrix_shapes
from tests.checkpoints import FAMILIES, checkpoint

S, T, P = Product.STORED, Product.TRANSPOSED, Product.PACKED
CPU = torch.device("cpu")
ONE = Shape(64, 32)

torch.set_num_threads(1)


def chosen(*rows: list[float], may_keep_two: bool = True, shape: Shape = ONE) -> Choice:
    seconds = dict(zip((S, T, P), rows, strict=True))
    return fastest({shape: seconds}, {shape: 1}, may_keep_two=may_keep_two)[shape]


def test_one_copy_serves_where_no_rows_are_much_slower_with_it() -> None:
    assert chosen([5, 5, 5, 5, 5], [1, 1, 1, 1, 1], [1.09, 0.95, 0.95, 1, 1]) == uniform(P)
    assert chosen([5, 5, 5, 5, 5], [1, 1, 1, 1, 1], [0.95, 1.09, 1.09, 1, 1]) == uniform(T)


def test_a_second_copy_is_kept_where_it_is_worth_it_and_allowed() -> None:
    rows = ([9, 9, 9, 9, 9], [1, 2, 2, 2, 2], [2, 1, 1, 1, 1])
    assert chosen(*rows) == (T, P, P, P, P)
    assert chosen(*rows, may_keep_two=False) == uniform(P)


def test_a_second_copy_that_a_whole_step_does_not_feel_is_not_kept() -> None:
    large, small = Shape(4096, 512), Shape(8, 8)
    seconds = {
        large: {T: [9, 9, 9, 9, 9], P: [9, 9, 9, 9, 9]},
        small: {T: [1, 2, 2, 2, 2], P: [2, 1, 1, 1, 1]},
    }
    found = fastest(seconds, {large: 4, small: 1}, may_keep_two=True)
    assert found[small] == uniform(P)
    assert len(set(fastest(seconds, {large: 1, small: 99}, may_keep_two=True)[small])) == 2


def test_the_embedding_serves_as_its_own_head_unless_it_is_slow() -> None:
    tied = Shape(64, 32, is_kept=True)
    rows = ([1.09, 1.09, 1, 1, 1], [1, 1, 1, 1, 1], [2, 2, 2, 2, 2])
    assert chosen(*rows, shape=tied) == uniform(S)
    assert chosen(*rows) == uniform(T)
    assert chosen([1.3, 1, 1, 1, 1], *rows[1:], shape=tied, may_keep_two=False) == uniform(T)


def test_what_was_not_reached_in_time_is_computed_as_what_was() -> None:
    assert chosen([1, 9], [9, 1], [9, 9]) == (S, T, T, T, T)


def test_a_choice_reads_as_a_phrase() -> None:
    assert told(uniform(P)) == "packed"
    assert told((T, P, P, P, T)) == "transposed, packed from 2 rows, transposed from 65 rows"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_bias", [False, True])
def test_every_product_is_the_same_for_all_rows(dtype: torch.dtype, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 32, generator=generator)
    bias = torch.randn(48, generator=generator) if has_bias else None
    tolerance = 1e-5 if dtype is torch.float32 else 0.1
    for rows in (1, *CLASS_ROWS, *(most + 1 for most in CLASS_ROWS), 300):
        x = torch.randn(rows, 32, generator=generator)
        expected = torch.nn.functional.linear(x, weight, bias)
        cast = None if bias is None else bias.to(dtype)
        for product in products_for(dtype, CPU):
            matrix = make_linear(weight.to(dtype), cast, uniform(product))
            torch.testing.assert_close(
                matrix(x.to(dtype)).float(), expected, atol=tolerance, rtol=tolerance
            )


def test_rows_are_served_by_the_copy_of_their_class() -> None:
    weight = torch.randn(8, 4)
    matrix = make_linear(weight, None, (T, P, P, S, T))
    assert matrix.copies[0] is matrix.copies[4]
    assert len(set(map(id, matrix.copies))) == 3
    for rows in (1, 2, 4, 5, 16, 17, 64, 65, 1000):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(matrix(x), x @ weight.t())


def test_stored_is_the_checkpoints_own_memory() -> None:
    weight = torch.randn(8, 4)
    matrix = make_linear(weight, None, uniform(S))
    before = matrix(torch.ones(1, 4))
    weight.mul_(2)
    torch.testing.assert_close(matrix(torch.ones(1, 4)), 2 * before)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_of_a_model_is_chosen_for(family: str) -> None:
    spec = load_spec(checkpoint(family))
    shapes = matrix_shapes(spec)
    assert sum(shapes.values()) == 4 * spec.num_layers + 1
    config = EngineConfig(checkpoint=checkpoint(family), num_blocks=1, block_size=8, num_threads=1)
    measurements = Measurements()
    Engine(spec, config, measurements=measurements)
    assert set(measurements.choices) == {"attention", *(f"product {shape}" for shape in shapes)}


def test_a_model_is_timed_once_for_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num = 0

    def time_shape(*_: object, **__: object) -> dict[str, list[float]]:
        nonlocal num
        num += 1
        return {each: [1.0 if each is S else 2.0] * NUM_CLASSES for each in Product}

    monkeypatch.setattr("engine.layers.products.time_shape", time_shape)
    monkeypatch.setattr("cluster.host.waited_s", lambda: 0.0)
    shapes = {ONE: 3, Shape(32, 32): 3}

    def choose(threads: int) -> None:
        torch.set_num_threads(threads)
        found = choose_products(
            shapes, Measurements(tmp_path), dtype=torch.float32, device=CPU, may_keep_two=True
        )
        assert found == dict.fromkeys(shapes, uniform(S))

    try:
        for threads in (1, 1, 2, 2):
            choose(threads)
    finally:
        torch.set_num_threads(1)
    assert num == 4  # two shapes, with one thread and with two
