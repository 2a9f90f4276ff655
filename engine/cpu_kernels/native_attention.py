"""Attention over the paged KV cache by a kernel for this processor: the whole batch in one call, K
and V read where they lie. What a token attends to has the same bits in any batch and chunk.

`attention.cpp` here is the kernel. Whether it serves is not known here.
"""

import ctypes
import itertools
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cluster.compiled import library
from cluster.types import KvLayout
from engine.attention import Query
from engine.cpu_kernels.torch_threads import openmp_entry
from engine.kernel_error import NoKernelError

SOURCE = Path(__file__).with_name("attention.cpp")
_KV_TYPES = {"float32": "float", "bfloat16": "BFloat16", "float16": "Float16"}
# Of a chunk so many queries share one reading of the context: enough that packing it costs little.
_MOST_QUERIES = 256
_FEWEST_QUERIES = 12
_UNITS_A_THREAD = 4  # at least, where there is enough to do: so that all end at about one time

_EVERYTHING = 1 << 62  # tokens that a token sees where there is no window


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
    memory: tuple[object, ...]


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
        tables, tables_at = array("i"), []
        for each in queries:
            tables_at.append(len(tables))
            num_blocks = -(-(each.start + each.num_new) // self._block_size)
            tables.extend(each.block_table[:num_blocks])
        return {
            window: self._plan(window, queries, tables_at, tables) for window in set(self._windows)
        }

    @property
    def _block_size(self) -> int:
        return self._layout.block_size

    def _plan(
        self,
        window: int | None,
        queries: Sequence[Query],
        tables_at: Sequence[int],
        tables: "array[int]",
    ) -> NativePlan:
        """In plain Python: arrays of a few rows cost more than these."""
        num_threads = torch.get_num_threads()
        reach = _EVERYTHING if window is None else window
        num_pieces = [self._num_pieces(each, reach) for each in queries]
        work = [pieces * each.num_new for pieces, each in zip(num_pieces, queries, strict=True)]
        share = max(1, sum(work) / (_UNITS_A_THREAD * num_threads))
        rows, missing = array("q"), array("i")
        first_tokens = list(itertools.accumulate((q.num_new for q in queries), initial=0))
        num_partials = num_units = 0
        for place in sorted(range(len(queries)), key=work.__getitem__, reverse=True):
            each, pieces = queries[place], num_pieces[place]
            is_split = each.num_new == 1 and pieces > share and num_threads > 1
            tokens = self._unit_tokens(each.num_new, num_threads)
            first_partial = num_partials if is_split else -1
            rows.extend((first_tokens[place], each.num_new, each.start, tables_at[place]))
            rows.extend((tokens, first_partial, num_units))
            missing.append(pieces if is_split else 0)
            num_partials += missing[-1]
            num_units += self._num_units(each.num_new, tokens) if not is_split else pieces
        partials = torch.empty(num_partials * self._partial_floats)
        if len(self._scratch) < num_threads * self._scratch_floats:
            self._scratch = torch.empty(num_threads * self._scratch_floats)
        step = _Step(
            num_rows=len(queries),
            num_units=num_units,
            rows=rows.buffer_info()[0],
            tables=tables.buffer_info()[0],
            num_missing=missing.buffer_info()[0],
            partials=partials.data_ptr(),
            heads=self._num_heads,
            kv_heads=self._layout.num_kv_heads,
            dim=self._layout.head_dim,
            block_size=self._block_size,
            window=reach,
            num_threads=num_threads,
            scratch=self._scratch.data_ptr(),
            scratch_floats=self._scratch_floats,
            parallel=self._parallel,
        )
        return NativePlan(step, (rows, tables, missing, partials, self._scratch))

    def _num_pieces(self, query: Query, reach: int) -> int:
        """Of what any of its tokens sees."""
        oldest = max(query.start - reach + 1, 0) // self._piece
        return (query.start + query.num_new - 1) // self._piece + 1 - oldest

    def _unit_tokens(self, num_new: int, num_threads: int) -> int:
        """Fewer where threads would else have nothing to do."""
        enough = -(-num_new * self._layout.num_kv_heads // (_UNITS_A_THREAD * num_threads))
        fewest = min(self._most_tokens, max(1, _FEWEST_QUERIES // self._group))
        return min(max(enough, fewest), self._most_tokens)

    def _num_units(self, num_new: int, tokens: int) -> int:
        """Of a row that is not split."""
        return 1 if num_new == 1 else -(-num_new // tokens) * self._layout.num_kv_heads

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
        return output if wide is qkv else output.to(qkv.dtype)
