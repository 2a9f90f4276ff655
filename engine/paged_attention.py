"""Attention over the paged KV cache without copying the context.

Consecutive blocks are one strided view of the pool: a row attends to each such piece where it
lies, and the pieces share one softmax. Only slots in short, scattered runs are gathered.
Knows slots and positions; whose they are it is told.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from cluster.types import KvLayout
from engine.attention import Query
from engine.kv_cache import slots_of

# A run of slots whose keys have fewer elements costs less to copy than to attend to on its own
# (measured on three shapes of heads: the two meet at 32 to 64 KiB).
MIN_RUN_ELEMENTS = 12 * 1024
# A gather copies at most so many tokens at once, whatever the context.
MAX_GATHER_TOKENS = 1024


class SlotRun(NamedTuple):
    first_slot: int
    num_tokens: int


class RowPlan(NamedTuple):
    """One query against the pieces of what it sees, in no particular order."""

    first: int  # its first token in the batch
    num_new: int
    spans: list[SlotRun]
    gathers: list[Tensor]  # int64 slots
    window: "WindowPlan | None" = None


class Tile(NamedTuple):
    """Some queries of a row, and the keys of which each of them sees a band."""

    first: int
    num_queries: int
    first_key: int
    num_keys: int
    mask: Tensor  # [num_queries, num_keys], added to the scores


class WindowPlan(NamedTuple):
    """A prompt chunk longer than the sliding window reaches."""

    context: Tensor  # int64 slots before the chunk that its first token still sees
    tiles: list[Tile]


class PagedAttention:
    """Plans each row, and attends to it, on its own."""

    def __init__(self, num_heads: int, layout: KvLayout, device: torch.device) -> None:
        self._num_heads = num_heads
        self._num_kv_heads = layout.num_kv_heads
        self._group = num_heads // layout.num_kv_heads  # query heads that share a K/V head
        self._head_dim = layout.head_dim
        self._block_size = layout.block_size
        self._windows = [layout.window(layer) for layer in range(layout.num_layers)]
        self._device = device
        self._min_run = MIN_RUN_ELEMENTS // (layout.num_kv_heads * layout.head_dim)  # tokens

    def plan(self, queries: Sequence[Query]) -> dict[int | None, list[RowPlan]]:
        """Plans by window, and row by row."""
        firsts = itertools.accumulate((query.num_new for query in queries), initial=0)
        placed = list(zip(queries, firsts, strict=False))
        return {
            window: [self._plan_row(query, first, window) for query, first in placed]
            for window in set(self._windows)
        }

    def _plan_row(self, query: Query, first: int, window: int | None) -> RowPlan:
        start, num_new = query.start, query.num_new
        oldest = 0 if window is None else max(0, start - window + 1)
        if window is not None and num_new > 1 and start + num_new > window:
            slots = slots_of(query.block_table, self._block_size, oldest, start)
            context = torch.from_numpy(slots).to(self._device)
            tiles = _tiles(start - oldest, num_new, window, self._device)
            return RowPlan(first, num_new, [], [], WindowPlan(context, tiles))
        # A single token reads itself from the cache; a chunk attends to itself apart.
        stop = start + 1 if num_new == 1 else start
        runs = slot_runs(query.block_table, self._block_size, oldest, stop)
        spans, gathers = _pieces(runs, self._min_run, self._device)
        return RowPlan(first, num_new, spans, gathers)

    def attend(
        self, layer: int, plan: dict[int | None, list[RowPlan]], qkv: Tensor, cache: Tensor
    ) -> Tensor:
        """Attends as the protocol says."""
        outputs = [
            self._attend_token(row, qkv, cache)
            if row.num_new == 1
            else self._attend_chunk(row, qkv, cache)
            for row in plan[self._windows[layer]]
        ]
        joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return joined.view(qkv.shape[0], -1)

    def _attend_token(self, plan: RowPlan, qkv: Tensor, cache: Tensor) -> Tensor:
        """[1, num_heads * head_dim]. The scores of all pieces share one softmax."""
        kv_heads, group, dim = self._num_kv_heads, self._group, self._head_dim
        # The query heads that share a K/V head stand where positions would.
        query = qkv[plan.first, : self._num_heads].view(kv_heads, group, dim)
        pieces = self._pieces_of(plan, cache, query.dtype)
        scores = [torch.bmm(query, keys) for keys, _ in pieces]
        joined = scores[0] if len(scores) == 1 else torch.cat(scores, dim=-1)
        weights = joined.softmax(-1)
        if len(pieces) == 1:
            return torch.bmm(weights, pieces[0][1]).view(1, -1)
        output = query.new_zeros(kv_heads, group, dim)
        first = 0
        for keys, values in pieces:
            stop = first + keys.shape[-1]
            output.baddbmm_(weights[:, :, first:stop], values)
            first = stop
        return output.view(1, -1)

    def _attend_chunk(self, plan: RowPlan, qkv: Tensor, cache: Tensor) -> Tensor:
        """[num_new, num_heads * head_dim]"""
        heads, kv_heads, group = self._num_heads, self._num_kv_heads, self._group
        chunk = qkv[plan.first : plan.first + plan.num_new]
        # [kv_heads, group, num_new, head_dim]: K/V heads as batch, expanded without a copy.
        query = chunk[:, :heads].view(-1, kv_heads, group, self._head_dim).permute(1, 2, 0, 3)
        keys, values = chunk[:, heads : heads + kv_heads], chunk[:, heads + kv_heads :]
        if plan.window is not None:
            output = self._attend_window(plan.window, query, keys, values, cache)
        else:
            by_head = (self._expanded(keys.transpose(0, 1)), self._expanded(values.transpose(0, 1)))
            attended = _attend(query, *by_head, is_causal=True)
            for transposed, piece_values in self._pieces_of(plan, cache, query.dtype):
                piece_keys = self._expanded(transposed.transpose(1, 2))
                seen = _attend(query, piece_keys, self._expanded(piece_values), is_causal=False)
                attended = _merged(attended, seen)
            output = attended.output
        return output.permute(2, 0, 1, 3).reshape(plan.num_new, -1)

    def _attend_window(
        self, window: WindowPlan, query: Tensor, keys: Tensor, values: Tensor, cache: Tensor
    ) -> Tensor:
        seen = cache.index_select(1, window.context).to(query.dtype)
        all_keys = self._expanded(torch.cat([seen[0], keys]).transpose(0, 1))
        all_values = self._expanded(torch.cat([seen[1], values]).transpose(0, 1))
        outputs = []
        for tile in window.tiles:
            part = slice(tile.first_key, tile.first_key + tile.num_keys)
            tile_query = query[:, :, tile.first : tile.first + tile.num_queries]
            mask = tile.mask.to(query.dtype)
            outputs.append(
                scaled_dot_product_attention(
                    tile_query, all_keys[:, :, part], all_values[:, :, part], mask, scale=1.0
                )
            )
        return torch.cat(outputs, dim=2)

    def _expanded(self, keys: Tensor) -> Tensor:
        """[kv_heads, group, num_tokens, head_dim] of [kv_heads, num_tokens, head_dim], a view."""
        return keys.unsqueeze(1).expand(-1, self._group, -1, -1)

    def _pieces_of(
        self, plan: RowPlan, cache: Tensor, dtype: torch.dtype
    ) -> list[tuple[Tensor, Tensor]]:
        """Gives of each piece K as [kv_heads, head_dim, num_tokens], V with the last two
        swapped."""
        kv_heads, dim = self._num_kv_heads, self._head_dim
        row = kv_heads * dim
        plane, origin = cache.stride(0), cache.storage_offset()
        pieces = []
        for first_slot, num_tokens in plan.spans:
            offset = origin + first_slot * row
            keys = cache.as_strided((kv_heads, dim, num_tokens), (dim, 1, row), offset)
            values = cache.as_strided((kv_heads, num_tokens, dim), (dim, row, 1), offset + plane)
            pieces.append((keys, values))
        for slots in plan.gathers:
            keys, values = cache.index_select(1, slots)
            pieces.append((keys.permute(1, 2, 0), values.transpose(0, 1)))
        if cache.dtype is dtype:
            return pieces
        return [(keys.to(dtype), values.to(dtype)) for keys, values in pieces]


class Attended(NamedTuple):
    output: Tensor  # [batch, heads, num_queries, head_dim]
    log_sum: Tensor  # [batch, heads, num_queries]: log of the sum of exponentials


def _attend(query: Tensor, keys: Tensor, values: Tensor, *, is_causal: bool) -> Attended:
    if query.device.type == "cpu" and query.dtype is torch.float32:
        output, log_sum = torch._scaled_dot_product_flash_attention_for_cpu(
            query, keys, values, 0.0, is_causal, scale=1.0
        )
        return Attended(output, log_sum)
    return attend_plainly(query, keys, values, is_causal=is_causal)


def attend_plainly(query: Tensor, keys: Tensor, values: Tensor, *, is_causal: bool) -> Attended:
    """The same by the textbook, on any device."""
    scores = torch.matmul(query, keys.transpose(-1, -2)).float()
    if is_causal:
        size = scores.shape[-2:]
        hidden = torch.ones(size, dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, -math.inf)
    log_sum = scores.logsumexp(-1)
    weights = (scores - log_sum.unsqueeze(-1)).exp().to(values.dtype)
    return Attended(torch.matmul(weights, values), log_sum)


def _merged(one: Attended, other: Attended) -> Attended:
    """Attention to both sets of keys, from attention to each."""
    log_sum = torch.logaddexp(one.log_sum, other.log_sum)
    output = one.output * (one.log_sum - log_sum).exp().unsqueeze(-1)
    output += other.output * (other.log_sum - log_sum).exp().unsqueeze(-1)
    return Attended(output.to(one.output.dtype), log_sum)


def slot_runs(block_table: Sequence[int], block_size: int, start: int, stop: int) -> list[SlotRun]:
    """The slots of positions [start, stop) as maximal consecutive runs."""
    if stop <= start:
        return []
    first_block, last_block = start // block_size, (stop - 1) // block_size
    blocks = np.asarray(block_table[first_block : last_block + 1])
    breaks = np.flatnonzero(np.diff(blocks) != 1) + 1
    edges = [0, *breaks.tolist(), len(blocks)]
    runs = []
    for begin, end in itertools.pairwise(edges):
        low = max(start, (first_block + begin) * block_size)
        high = min(stop, (first_block + end) * block_size)
        block = int(blocks[begin])
        slot = block * block_size + low - (first_block + begin) * block_size
        runs.append(SlotRun(slot, high - low))
    return runs


def _pieces(
    runs: list[SlotRun], min_run: int, device: torch.device
) -> tuple[list[SlotRun], list[Tensor]]:
    """Long runs stay where they are; short ones, if several, are gathered together."""
    short = [run for run in runs if run.num_tokens < min_run]
    if len(short) <= 1:
        return runs, []
    slots = np.concatenate([np.arange(slot, slot + num) for slot, num in short])
    gathers = [
        torch.from_numpy(slots[first : first + MAX_GATHER_TOKENS]).to(device)
        for first in range(0, len(slots), MAX_GATHER_TOKENS)
    ]
    return [run for run in runs if run.num_tokens >= min_run], gathers


def _tiles(num_context: int, num_new: int, window: int, device: torch.device) -> list[Tile]:
    """Queries in tiles about as long as the window, so that few masked scores are computed."""
    size = min(num_new, max(64, window))
    tiles = []
    for first in range(0, num_new, size):
        num_queries = min(size, num_new - first)
        first_key = max(0, num_context + first - window + 1)
        num_keys = num_context + first + num_queries - first_key
        own = torch.arange(first, first + num_queries)[:, None] + num_context - first_key
        key = torch.arange(num_keys)[None, :]
        hidden = (key > own) | (key <= own - window)
        mask = torch.zeros(num_queries, num_keys).masked_fill(hidden, -math.inf)
        tiles.append(Tile(first, num_queries, first_key, num_keys, mask.to(device)))
    return tiles
