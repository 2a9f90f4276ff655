"""One matrix of a model, stored for the products that are fastest with it on this machine.

Knows neither what the matrix means nor how that was found out.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import assert_never

import torch
from torch import Tensor

from cluster.compiled import CompileError
from engine.cpu_kernels.native_products import NativeMatrix
from engine.kernel_error import NoKernelError

# Steps of one answer, of a few, of a usual batch, of a full one; prompts. The largest number of
# rows of each class but the last, which has no end.
CLASS_ROWS = (1, 4, 16, 64)
NUM_CLASSES = len(CLASS_ROWS) + 1

_MOST_ROWS = CLASS_ROWS[-1] + 1
_CLASS_OF = [sum(rows > most for most in CLASS_ROWS) for rows in range(_MOST_ROWS + 1)]
# The layout that oneDNN packs a matrix in follows from how many rows it is told to expect: told
# 16 it is as large as the matrix and serves all numbers of rows; told 1 it serves few.
_PACKED_FOR = 16

_TRIED_ROWS = 20
_TOLERANCE = 1e-2  # of sums of some hundreds

logger = logging.getLogger(__name__)

_HAS_PACKED = bool(torch._C._has_mkldnn)
_PACKED_PRODUCT = torch.ops.mkldnn._linear_pointwise.default if _HAS_PACKED else None


class Product(StrEnum):
    """A way to compute x @ matrix. Each reads a copy of its own."""

    STORED = "stored"  # torch.mm on the checkpoint's [num_outputs, num_inputs]
    TRANSPOSED = "transposed"  # torch.mm on [num_inputs, num_outputs]
    PACKED = "packed"  # oneDNN's, on its own order
    NATIVE = "native"  # the kernel's, on its own


Choice = tuple[Product, ...]  # by class of rows


def uniform(product: Product) -> Choice:
    return (product,) * NUM_CLASSES


class _Plain:
    __slots__ = ("_bias", "_matrix")

    def __init__(self, matrix: Tensor, bias: Tensor | None) -> None:
        """`matrix`: [num_inputs, num_outputs], a view of either order."""
        self._matrix = matrix
        self._bias = bias

    def of(self, x: Tensor) -> Tensor:
        if self._bias is None:
            return torch.mm(x, self._matrix)
        return torch.addmm(self._bias, x, self._matrix)


class _Packed:
    __slots__ = ("_bias", "_matrix")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._matrix = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_FOR)
        self._bias = bias

    def of(self, x: Tensor) -> Tensor:
        assert _PACKED_PRODUCT is not None  # else nothing was packed
        product: Tensor = _PACKED_PRODUCT(x, self._matrix, self._bias, "none", [], "")
        return product


Copy = _Plain | _Packed | NativeMatrix


@dataclass(frozen=True, slots=True)
class Linear:
    """x @ matrix (+ bias)."""

    copies: tuple[Copy, ...]  # by class of rows; mostly one and the same

    def __call__(self, x: Tensor) -> Tensor:
        return self.copies[class_of(x.shape[0])].of(x)


def class_of(num_rows: int) -> int:
    return _CLASS_OF[num_rows if num_rows < _MOST_ROWS else _MOST_ROWS]


def make_linear(weight: Tensor, bias: Tensor | None, choice: Choice) -> Linear:
    """Makes a product of a checkpoint's [num_outputs, num_inputs], of which STORED is a view."""
    copies = {product: make_copy(product, weight, bias) for product in set(choice)}
    return Linear(tuple(copies[product] for product in choice))


def serving_all(copy: Copy) -> Linear:
    return Linear((copy,) * NUM_CLASSES)


def make_copy(product: Product, weight: Tensor, bias: Tensor | None = None) -> Copy:
    match product:
        case Product.STORED:
            return _Plain(weight.t(), bias)
        case Product.TRANSPOSED:
            return _Plain(weight.t().contiguous(), bias)
        case Product.PACKED:
            return _Packed(weight, bias)
        case Product.NATIVE:
            return NativeMatrix(weight, bias)
    assert_never(product)


def products_for(dtype: torch.dtype, device: torch.device) -> Iterable[Product]:
    """Lists the products that can compute with this dtype there."""
    yield Product.TRANSPOSED
    if device.type == "cpu":
        yield Product.STORED
        if _HAS_PACKED and _packs(dtype):
            yield Product.PACKED
        if dtype is torch.float32 and native_serves(dtype):
            yield Product.NATIVE


@cache
def native_serves(dtype: torch.dtype) -> bool:
    """Tries the kernel on a small matrix of float32, bfloat16 or int8, once for this process."""
    generator = torch.Generator().manual_seed(0)
    x, drawn = (torch.randn(rows, 50, generator=generator) for rows in (_TRIED_ROWS, 70))
    weight = (drawn * 25).to(dtype)
    bias = torch.randn(70, generator=generator)
    try:
        found = NativeMatrix(weight, bias).of(x)
    except (CompileError, NoKernelError) as error:
        logger.warning("There is no kernel for products: %s", error)
        return False
    difference = float((found - torch.addmm(bias, x, weight.float().t())).abs().max())
    if difference < _TOLERANCE:
        return True
    logger.warning("The kernel for products does not serve: it differs by %.1g", difference)
    return False


def _packs(dtype: torch.dtype) -> bool:
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype is torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype is torch.float32
