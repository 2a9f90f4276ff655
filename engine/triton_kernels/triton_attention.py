"""Attention over the paged KV cache by Triton's kernels: chunks and single tokens of a step in one
launch, K and V read where they lie. Whether it serves is not known here.
"""

from array import array
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cluster.types import KvLayout
from engine.attention import Query
from engine.kernel_error import NoKernelError
from engine.kv_cache import DTYPES
from engine.triton_kernels.attention_kernels import attend_units, merge_partials
from engine.triton_kernels.attention_plan import QueryColumns, cut
from engine.triton_kernels.door import check_device, launch, power_of_2

LARGEST_HEAD = 256
# Bytes of one tile in a multiprocessor's own memory: of queries, and of keys; values are as many,
# and two tiles of each are on their way. 96 KiB in all, which any card since 2020 has.
_QUERY_BYTES = 32 * 1024
_KEY_BYTES = 16 * 1024
_FEWEST_ROWS = 16  # what a matrix unit multiplies at once
_PARTS = 16  # joined at once


class TritonPlan(NamedTuple):
    """One step's work for the layers of one window, on the device."""

    units: Tensor  # int32, as `UnitTable` has them
    merges: Tensor
    tables: Tensor  # int32: blocks of all rows, end to end
    partials: Tensor
    log_sums: Tensor
    num_rows: int  # of a tile of queries


class TritonAttention:
    """Plans with one upload a step; attends with one launch a layer, and a second one where keys of
    a token were split."""

    def __init__(
        self,
        num_heads: int,
        layout: KvLayout,
        device: torch.device,
        dtype: torch.dtype,
        soft_cap: float | None = None,
    ) -> None:
        """`dtype`: of what is computed; sums are float32. *Raises* NoKernelError."""
        check_device(device)
        if layout.num_planes != 2:
            raise NoKernelError("it knows no cache of latents")
        if layout.head_dim > LARGEST_HEAD:
            raise NoKernelError(f"heads have {layout.head_dim} numbers, and it knows 256 at most")
        self._num_heads = num_heads
        self._layout = layout
        self._device = device
        self._windows = [layout.window(layer) for layer in range(layout.num_layers)]
        self._group = num_heads // layout.num_kv_heads
        self._padded_dim = max(_FEWEST_ROWS, power_of_2(layout.head_dim))
        row_bytes = self._padded_dim * max(dtype.itemsize, DTYPES[layout.dtype].itemsize)
        self._token_rows = max(_FEWEST_ROWS, power_of_2(self._group))
        self._chunk_rows = max(self._token_rows, min(128, _QUERY_BYTES // row_bytes))
        self._num_keys = max(_FEWEST_ROWS, min(64, _KEY_BYTES // row_bytes))
        self._soft_cap = soft_cap or 0.0
        # float32 is not rounded to TF32 on its way into a product; narrower numbers have no choice.
        self._precision = "ieee" if dtype is torch.float32 else "tf32"

    def plan(self, queries: Sequence[Query]) -> Mapping[int | None, TritonPlan]:
        """Plans by window."""
        if not queries:
            return {}
        size = self._layout.block_size
        rows = QueryColumns.of(queries, size)
        blocks = array("i")
        for query in queries:
            blocks.extend(query.block_table[: -(-(query.start + query.num_new) // size)])
        has_chunks = int(rows.num_new.max()) > 1
        num_rows = self._chunk_rows if has_chunks else self._token_rows
        heads = self._layout.num_kv_heads
        windows = list(dict.fromkeys(self._windows))
        cuts = [cut(rows, window, num_rows // self._group, heads) for window in windows]
        tables, *numbers = self._uploaded(
            [np.frombuffer(blocks, dtype=np.int32)]
            + [part for each in cuts for part in (each.units, each.merges)]
        )
        plans = zip(windows, cuts, numbers[::2], numbers[1::2], strict=True)
        return {
            window: TritonPlan(
                units=units,
                merges=merges,
                tables=tables,
                partials=self._floats(each.num_partials, self._num_heads, self._layout.head_dim),
                log_sums=self._floats(each.num_partials, self._num_heads),
                num_rows=num_rows,
            )
            for window, each, units, merges in plans
        }

    def _uploaded(
        self, parts: Sequence["np.ndarray[tuple[int, ...], np.dtype[np.signedinteger]]"]
    ) -> list[Tensor]:
        """All in one copy that nobody waits for; each begins at a multiple of 16 bytes, so that
        there is one form of a kernel."""
        flat = [np.pad(part.ravel(), (0, -part.size % 4)) for part in parts]
        joined = torch.from_numpy(np.concatenate(flat).astype(np.int32))
        if self._device.type == "cuda":
            joined = joined.pin_memory().to(self._device, non_blocking=True)
        pieces = torch.split(joined, [len(part) for part in flat])
        return [
            piece[: part.size].view(part.shape) for piece, part in zip(pieces, parts, strict=True)
        ]

    def _floats(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self._device)

    def attend(
        self, layer: int, plan: Mapping[int | None, TritonPlan], qkv: Tensor, cache: Tensor
    ) -> Tensor:
        """Attends as the protocol says."""
        window = self._windows[layer]
        step = plan[window]
        heads, dim = self._num_heads, self._layout.head_dim
        output = qkv.new_empty(len(qkv), heads * dim)
        keys, values = cache.unbind(0)
        launch(
            attend_units,
            (len(step.units), self._layout.num_kv_heads),
            qkv,
            keys,
            values,
            output,
            step.partials,
            step.log_sums,
            step.units,
            step.tables,
            qkv.stride(0),
            NUM_HEADS=heads,
            NUM_KV_HEADS=self._layout.num_kv_heads,
            DIM=dim,
            PADDED_DIM=self._padded_dim,
            BLOCK_SIZE=self._layout.block_size,
            WINDOW=window or 0,
            SOFT_CAP=self._soft_cap,
            NUM_ROWS=step.num_rows,
            NUM_KEYS=self._num_keys,
            PRECISION=self._precision,
            num_warps=8 if step.num_rows >= 128 else 4,
            num_stages=2,
        )
        if len(step.merges):
            launch(
                merge_partials,
                (len(step.merges), heads),
                step.partials,
                step.log_sums,
                output,
                step.merges,
                NUM_HEADS=heads,
                DIM=dim,
                PADDED_DIM=self._padded_dim,
                NUM_PARTS=_PARTS,
                num_warps=4,
            )
        return output
