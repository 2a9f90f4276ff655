"""Attention over the paged KV cache by a kernel for this processor: the whole batch in one call, K
and V read where they lie. What a token attends to has the same bits in any batch and chunk.

`attention.cpp` here is the kernel. Whether it serves is not known here.
"""

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cluster.compiled import library
from cluster.types import KvLayout
from engine.attention import Query
from engine.cpu_kernels.torch_threads import NoKernelError, openmp_entry

SOURCE = Path(__file__).with_name("attention.cpp")
_KV_TYPES = {"float32": "float", "bfloat16": "BFloat16", "float16": "Float16"}
# Of a chunk so many queries share one reading of the context: enough that packing it costs little.
_MOST_QUERIES = 256
_FEWEST_QUERIES = 12
_UNITS_A_THREAD = 4  # at least, where there is enough to do: so that all end at about one time

Integers = npt.NDArray[np.int64]


class _Step(ctypes.Structure):
    """`struct Step` of the kernel."""

    _fields_ = (
        ("num_rows", ctypes.c_int64),
        ("num_units", ctypes.c_int64),
        ("rows", ctypes.c_void_p),
        ("tables", ctypes.c_void_p),
        ("num_missing", ctypes.c_void_p),
        ("partials", ctypes.c_void_p),
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("block_size", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("queries", ctypes.c_void_p),
        ("query_stride", ctypes.c_int64),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("num_threads", ctypes.c_int64),
        ("scratch", ctypes.c_void_p),
        ("scratch_floats", ctypes.c_int64),
        ("parallel", ctypes.c_void_p),
        ("next_unit", ctypes.c_int64),
        ("num_begun", ctypes.c_int64),
    )


class NativePlan(NamedTuple):
    """One step's rows for the layers of one window, and the memory that the step points to."""

    step: _Step
    memory: tuple[npt.NDArray[np.generic] | Tensor, ...]


class NativeAttention:
    """Plans with a few arrays a step, attends with one call a layer, on torch's own threads."""

    def __init__(self, num_heads: int, layout: KvLayout) -> None:
        """*Raises* CompileError where the kernel is not to be had, NoKernelError where it cannot
        serve this layout or run on torch's threads."""
        if layout.num_planes != 2:
            raise NoKernelError("it knows no cache of latents")
        kernel = library(SOURCE, f"KV={_KV_TYPES[layout.dtype]}")
        self._attend = kernel.attention_attend
        self._attend.restype = None
        self._parallel = openmp_entry()
        self._num_heads = num_heads
        self._layout = layout
        self._windows = [layout.window(layer) for layer in range(layout.num_layers)]
        self._group = num_heads // layout.num_kv_heads
        self._most_tokens = max(1, _MOST_QUERIES // self._group)  # of a unit
        heads, dim = ctypes.c_int64(num_heads), ctypes.c_int64(layout.head_dim)
        kv_heads, tokens = (ctypes.c_int64(n) for n in (layout.num_kv_heads, self._most_tokens))
        for function in (kernel.attention_partial, kernel.attention_scratch):
            function.restype = ctypes.c_int64
        self.num_lanes = int(kernel.attention_lanes())
        self._piece = int(kernel.attention_piece())
        self._partial_floats = int(kernel.attention_partial(heads, dim))
        self._scratch_floats = int(kernel.attention_scratch(heads, kv_heads, dim, tokens))
        self._scratch = torch.empty(0)

    def plan(self, queries: Sequence[Query]) -> Mapping[int | None, NativePlan]:
        """Plans by window."""
        if not queries:
            return {}
        blocks = [
            np.asarray(each.block_table[: -(-(each.start + each.num_new) // self._block_size)])
            for each in queries
        ]
        tables = np.concatenate(blocks).astype(np.int32)
        spans = np.array([(each.num_new, each.start) for each in queries], dtype=np.int64)
        firsts = _exclusive_sum(np.array([len(each) for each in blocks]))
        return {
            window: self._plan(window, spans[:, 0], spans[:, 1], firsts, tables)
            for window in set(self._windows)
        }

    @property
    def _block_size(self) -> int:
        return self._layout.block_size

    def _plan(
        self,
        window: int | None,
        num_new: Integers,
        start: Integers,
        tables_at: Integers,
        tables: npt.NDArray[np.int32],
    ) -> NativePlan:
        num_threads = torch.get_num_threads()
        kv_heads, piece = self._layout.num_kv_heads, self._piece
        reach = np.iinfo(np.int64).max // 2 if window is None else window
        oldest = np.maximum(start - reach + 1, 0) // piece
        num_pieces = (start + num_new - 1) // piece + 1 - oldest
        is_token = num_new == 1
        # Tokens of a unit: fewer where threads would else have nothing to do.
        tokens = -(-num_new * kv_heads // (_UNITS_A_THREAD * num_threads))
        fewest = min(self._most_tokens, max(1, _FEWEST_QUERIES // self._group))
        tokens = np.clip(tokens, fewest, self._most_tokens)
        work = num_pieces * num_new
        share = work.sum() / (_UNITS_A_THREAD * num_threads)
        is_split = is_token & (num_pieces > max(1, share)) & (num_threads > 1)
        num_partials = np.where(is_split, num_pieces, 0)
        num_units = np.where(
            is_token, np.maximum(num_partials, 1), -(-num_new // tokens) * kv_heads
        )
        order = np.argsort(-work, kind="stable")  # the longest first
        rows = np.stack(
            (
                _exclusive_sum(num_new)[order],
                num_new[order],
                start[order],
                tables_at[order],
                tokens[order],
                np.where(is_split[order], _exclusive_sum(num_partials[order]), -1),
                _exclusive_sum(num_units[order]),
            ),
            axis=1,
        )
        missing = num_partials[order].astype(np.int32)
        partials = torch.empty(int(num_partials.sum()) * self._partial_floats)
        if len(self._scratch) < num_threads * self._scratch_floats:
            self._scratch = torch.empty(num_threads * self._scratch_floats)
        step = _Step(
            num_rows=len(rows),
            num_units=int(num_units.sum()),
            rows=rows.ctypes.data,
            tables=tables.ctypes.data,
            num_missing=missing.ctypes.data,
            partials=partials.data_ptr(),
            heads=self._num_heads,
            kv_heads=kv_heads,
            dim=self._layout.head_dim,
            block_size=self._block_size,
            window=reach,
            num_threads=num_threads,
            scratch=self._scratch.data_ptr(),
            scratch_floats=self._scratch_floats,
            parallel=self._parallel,
        )
        return NativePlan(step, (rows, tables, missing, partials, self._scratch))

    def attend(
        self, layer: int, plan: Mapping[int | None, NativePlan], qkv: Tensor, cache: Tensor
    ) -> Tensor:
        """Attends as the protocol says; computes in float32 whatever the types."""
        step = plan[self._windows[layer]].step
        wide = qkv if qkv.dtype is torch.float32 else qkv[:, : self._num_heads].float()
        output = torch.empty(len(qkv), self._num_heads * self._layout.head_dim)
        step.queries, step.query_stride = wide.data_ptr(), wide.stride(0)
        step.keys = cache.data_ptr()
        step.values = step.keys + cache.stride(0) * cache.element_size()
        step.output = output.data_ptr()
        self._attend(ctypes.byref(step))
        return output.to(qkv.dtype)


def _exclusive_sum(numbers: Integers) -> Integers:
    return np.cumsum(numbers) - numbers
