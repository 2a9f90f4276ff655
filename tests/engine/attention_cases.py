"""Rows on scattered blocks, and what the textbook says that they attend to."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cluster.types import KvLayout
from engine.attention import Query
from engine.kv_cache import DTYPES, slots_of

# (start, number of new tokens): about edges of blocks and of pieces, chunks, prompts and tokens.
RAGGED = ((0, 1), (0, 33), (17, 1), (31, 70), (200, 3), (390, 1), (1, 2), (127, 1), (128, 1))
RAGGED += ((126, 4), (255, 1), (300, 150))


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCase:
    num_heads: int
    layout: KvLayout
    cache: Tensor
    queries: list[Query]
    rows: list[Tensor]  # qkv of each

    @property
    def qkv(self) -> Tensor:
        return torch.cat(self.rows)

    @property
    def window(self) -> int | None:
        return self.layout.window(0)


def draw_case(
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    *,
    block_size: int = 16,
    window: int | None = None,
    dtype: str = "float32",
    spans: Sequence[tuple[int, int]] = RAGGED,
    seed: int = 0,
) -> AttentionCase:
    """Draws a cache whose unused slots hold no numbers: who reads one shows it."""
    num_blocks = sum(-(-(start + new) // block_size) for start, new in spans)
    layout = KvLayout(
        num_layers=1,
        num_blocks=num_blocks,
        block_size=block_size,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        dtype=dtype,
        windows=(window,),
    )
    generator = torch.Generator().manual_seed(seed)
    cache = torch.full((2, num_blocks * block_size, num_kv_heads, head_dim), torch.nan)
    table = random.Random(seed).sample(range(num_blocks), num_blocks)
    queries, rows = [], []
    for start, num_new in spans:
        blocks = [table.pop() for _ in range(-(-(start + num_new) // block_size))]
        slots = torch.from_numpy(slots_of(blocks, block_size, 0, start + num_new))
        shape = 2, start + num_new, num_kv_heads, head_dim
        cache[:, slots] = torch.randn(shape, generator=generator).to(DTYPES[dtype]).float()
        drawn = torch.randn(num_new, num_heads, head_dim, generator=generator) * head_dim**-0.5
        own = cache[:, slots[start:]].transpose(0, 1).flatten(1, 2)
        queries.append(Query(blocks, start, num_new))
        rows.append(torch.cat([drawn, own], dim=1))
    return AttentionCase(
        num_heads=num_heads,
        layout=layout,
        cache=cache.to(DTYPES[dtype]),
        queries=queries,
        rows=rows,
    )


def textbook(case: AttentionCase, soft_cap: float | None = None) -> Tensor:
    """In double precision: softmax of all scores, position by position."""
    placed = zip(case.queries, case.rows, strict=True)
    return torch.cat([_of_row(case, query, row, soft_cap) for query, row in placed])


def _of_row(case: AttentionCase, query: Query, row: Tensor, soft_cap: float | None) -> Tensor:
    stop = query.start + query.num_new
    slots = torch.from_numpy(slots_of(query.block_table, case.layout.block_size, 0, stop))
    group = case.num_heads // case.layout.num_kv_heads
    keys, values = case.cache[:, slots].double().repeat_interleave(group, dim=2)
    scores = torch.einsum("qhd,khd->hqk", row[:, : case.num_heads].double(), keys)
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    own, position = torch.arange(query.start, stop)[:, None], torch.arange(stop)[None, :]
    hidden = position > own
    if case.window is not None:
        hidden |= position <= own - case.window
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, values).reshape(query.num_new, -1)
