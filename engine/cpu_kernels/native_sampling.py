"""Draws the tokens of a batch in one call, a row after another on torch's own threads.

`sampling.cpp` here is the kernel; what it does is said in `engine/drawing.py`, in torch.
"""

import ctypes
from collections.abc import Sequence as Rows
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cluster.compiled import library
from engine.cpu_kernels.torch_threads import openmp_entry
from engine.drawing import Draw, numbers

SOURCE = Path(__file__).with_name("sampling.cpp")

_DRAW = np.dtype(  # `struct Draw` of the kernel
    [
        ("row", np.int64),
        ("key", np.int64),
        ("temperature", np.float32),
        ("least", np.float32),
        ("top_p", np.float64),
        ("top_k", np.int64),
    ]
)


class NativeDrawing:
    """Draws by the kernel. For one thread at a time."""

    def __init__(self) -> None:
        """*Raises* CompileError or NoKernelError where it cannot be had."""
        kernel = library(SOURCE)
        self._draw = kernel.sampling_draw
        self._draw.restype = None
        number, pointer = ctypes.c_int64, ctypes.c_void_p
        self._draw.argtypes = [number] * 3 + [pointer] * 5 + [number]
        self._scratch_of = kernel.sampling_scratch
        self._scratch_of.restype = ctypes.c_int64
        self._parallel = openmp_entry()
        self._scratch = torch.empty(0)

    def __call__(self, logits: Tensor, draws: Rows[Draw]) -> list[list[int]]:
        wanted = [
            (row, *numbers(sequence.params.sampling, choice, position))
            for row, (sequence, position, choices) in enumerate(draws)
            for choice in choices
        ]
        table = np.array(wanted, dtype=_DRAW)
        tokens = np.empty(len(wanted), dtype=np.int64)
        num_threads, vocab = torch.get_num_threads(), logits.shape[1]
        num_floats = num_threads * self._scratch_of(ctypes.c_int64(vocab))
        if len(self._scratch) < num_floats:
            self._scratch = torch.empty(num_floats)
        at = logits.data_ptr(), table.ctypes.data, tokens.ctypes.data, self._scratch.data_ptr()
        self._draw(len(table), vocab, logits.stride(0), *at, self._parallel, num_threads)
        drawn = iter(tokens.tolist())
        return [[next(drawn) for _ in draw.choices] for draw in draws]
