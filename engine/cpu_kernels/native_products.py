"""Products with a matrix by a kernel for this processor: rows of float32, a matrix of any of three
types. What a row comes to has the same bits in any batch.

`product.cpp` here is the kernel. Whether it serves is not known here.
"""

import contextlib
import ctypes
import mmap
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from cluster.compiled import library
from engine.cpu_kernels.torch_threads import openmp_entry

SOURCE = Path(__file__).with_name("product.cpp")
_LARGE_PAGE = 2 << 20
_WEIGHTS = {torch.float32: "float", torch.bfloat16: "BFloat16", torch.int8: "int8_t"}


class _Matrix(ctypes.Structure):
    """`struct Matrix` of the kernel."""

    _fields_ = (
        ("num_inputs", ctypes.c_int64),
        ("num_outputs", ctypes.c_int64),
        ("panels", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("parallel", ctypes.c_void_p),
    )


class _Kernel(NamedTuple):
    multiply: Callable[..., Any]
    lanes: int
    vectors: int  # of a panel
    parallel: int


@cache
def _kernel(dtype: torch.dtype) -> _Kernel:
    kernel = library(SOURCE, f"WEIGHT={_WEIGHTS[dtype]}")
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    multiply = kernel.product_multiply
    multiply.restype, multiply.argtypes = None, [pointer, number, pointer, pointer, number]
    return _Kernel(multiply, kernel.product_lanes(), kernel.product_vectors(), openmp_entry())


class NativeMatrix:
    """x @ matrix (+ bias), of a checkpoint's [num_outputs, num_inputs] in float32, bfloat16 or
    int8, each output times its scale."""

    __slots__ = ("_at", "_kernel", "_memory", "_num_outputs")

    def __init__(self, weight: Tensor, bias: Tensor | None, scales: Tensor | None = None) -> None:
        """*Raises* CompileError or NoKernelError where the kernel cannot be had."""
        self._kernel = _kernel(weight.dtype)
        self._num_outputs, num_inputs = weight.shape
        panels = _in_large_pages(_in_panels(weight, self._kernel))
        matrix = _Matrix(
            num_inputs=num_inputs,
            num_outputs=self._num_outputs,
            panels=panels.data_ptr(),
            scales=None if scales is None else scales.data_ptr(),
            bias=None if bias is None else bias.data_ptr(),
            parallel=self._kernel.parallel,
        )
        self._memory = matrix, panels, scales, bias
        self._at = ctypes.addressof(matrix)

    def of(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        num_rows = x.shape[0]
        out = torch.empty(num_rows, self._num_outputs)
        places = x.data_ptr(), out.data_ptr()
        self._kernel.multiply(self._at, num_rows, *places, torch.get_num_threads())
        return out


def _in_panels(weight: Tensor, kernel: _Kernel) -> Tensor:
    """[panels, inputs, outputs of a panel]; of narrow numbers those of a lane side by side."""
    num_outputs, num_inputs = weight.shape
    padded = pad(weight, (0, 0, 0, -num_outputs % (kernel.lanes * kernel.vectors)))
    num_beside = torch.float32.itemsize // weight.dtype.itemsize
    shape = -1, kernel.vectors // num_beside, num_beside, kernel.lanes, num_inputs
    return padded.view(shape).permute(0, 4, 1, 3, 2).contiguous()


def _in_large_pages(panels: Tensor) -> Tensor:
    """The same, where the system gives large pages to who asks: read 4 % faster."""
    if panels.nbytes < _LARGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return panels
    memory = mmap.mmap(-1, panels.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=panels.dtype).view(panels.shape).copy_(panels)
