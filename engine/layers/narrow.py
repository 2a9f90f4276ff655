"""Matrices kept in fewer bits than they are computed with: nearly the same answers, sooner."""

from typing import NamedTuple, assert_never

import torch
from torch import Tensor

from engine.config import Weights
from engine.cpu_kernels.native_products import NativeMatrix
from engine.layers.linear import Copy, Linear, Product, make_copy, native_serves, serving_all

MOST = 127  # of an int8: symmetrical, so that 0 stays 0


class Narrowed(NamedTuple):
    """[num_outputs, num_inputs] of few bits, each row times its scale, where there are scales."""

    values: Tensor
    scales: Tensor | None

    def widened(self) -> Tensor:
        wide = self.values.float()
        return wide if self.scales is None else wide.mul_(self.scales[:, None])


def narrowed(weight: Tensor, kept: Weights) -> Narrowed:
    match kept:
        case "float32":
            return Narrowed(weight, None)
        case "bfloat16":
            return Narrowed(weight.bfloat16(), None)
        case "int8":
            scales = weight.abs().amax(1) / MOST
            values = weight / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
            return Narrowed(values.round_().to(torch.int8), scales)
    assert_never(kept)


def make_narrow(weight: Tensor, bias: Tensor | None, kept: Weights) -> Linear:
    """Makes a product by the kernel, for all numbers of rows; where there is none, with the same
    numbers in float32, by torch."""
    narrow = narrowed(weight, kept)
    copy: Copy
    if native_serves(narrow.values.dtype):
        copy = NativeMatrix(narrow.values, bias, narrow.scales)
    else:
        copy = make_copy(Product.STORED, narrow.widened(), bias)
    return serving_all(copy)


def told(kept: Weights) -> str:
    is_native = native_serves(narrowed(torch.zeros(1, 1), kept).values.dtype)
    return kept if is_native else f"{kept}, and in float32 again for want of a kernel"
