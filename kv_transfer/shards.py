"""Shares a worker's KV heads among its pools under tensor parallelism, and says who writes to whom.

One hand-over then is several transfers: one for each route.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from cluster.types import KvLayout


class Route(NamedTuple):
    """One transfer: indices of the pool that writes, and of the pool that receives."""

    source: int
    destination: int


def shards(layout: KvLayout, degree: int) -> tuple[KvLayout, ...]:
    """The pools of `degree` ranks, of which each holds an equal run of the heads; where there
    are fewer heads than ranks (also the one latent of MLA), each head lies on several.

    Raises ValueError where heads and ranks do not divide.
    """
    num_heads = layout.num_kv_heads
    if degree < 1 or (num_heads % degree and degree % num_heads):
        raise ValueError(f"{num_heads} KV heads cannot be shared by {degree} ranks.")
    num_here = max(1, num_heads // degree)
    return tuple(
        replace(
            layout,
            num_kv_heads=num_here,
            first_head=rank * num_heads // degree,
            total_heads=num_heads,
        )
        for rank in range(degree)
    )


def routes(sources: Sequence[KvLayout], destinations: Sequence[KvLayout]) -> tuple[Route, ...]:
    """One transfer for each receiving pool and each run of heads that it needs.

    Of sources with the same heads, receivers take turns: each head reaches each receiver once,
    and all sources work.
    """
    by_heads: dict[range, list[int]] = {}
    for index, layout in enumerate(sources):
        by_heads.setdefault(layout.heads, []).append(index)
    return tuple(
        Route(same[receiver % len(same)], receiver)
        for receiver, layout in enumerate(destinations)
        for heads, same in by_heads.items()
        if max(heads.start, layout.first_head) < min(heads.stop, layout.heads.stop)
    )
