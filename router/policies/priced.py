"""The default: the least price in seconds,

    wait + lambda * (prefill seconds that this prompt adds there + those it will cost to
    recompute what its KV evicts there),

over every worker, each with its own match or with one fetched from the longest holder. Lambda
is 1 plus the mean prompts per worker: below saturation the request's own latency wins, near it
cache reuse does. A worker that decodes, too, keeps its answers waiting meanwhile: lambda is
larger there by their number. A fetch runs beside the queue, so that only what outlasts it is
waited for.

What is evicted was used least recently: it is taken to be missed half as often as prompt
tokens are found cached at all. Without this term copies made by fetching drive out of small
caches more than they bring.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.load import Column, Columns, Loads
from router.pair_costs import CANNOT
from router.policies.rule import Choice, Prompt, draw_index

_KEPT = 0.999  # of what was observed, at each request
_TIE = 1e-9  # relative: prices this close are the same price


class Reuse(NamedTuple):
    """How much of the prompts was found cached lately."""

    random: int
    num_hits: float = 0.0
    num_tokens: float = 0.0

    @property
    def share(self) -> float:
        return self.num_hits / self.num_tokens if self.num_tokens else 0.0

    def after(self, num_hits: float, num_tokens: int, random: int) -> "Reuse":
        return Reuse(
            random=random,
            num_hits=_KEPT * self.num_hits + min(num_hits, num_tokens),
            num_tokens=_KEPT * self.num_tokens + num_tokens,
        )


class Bids(NamedTuple):
    """What it costs that a worker computes the prompt, and of what that is made. Float64 arrays
    [loads], seconds unless their names say otherwise."""

    price_s: Column
    wait_s: Column  # until the prompt's turn, and the end of its fetch if there is one
    prefill_s: Column
    evicted_s: Column  # to compute once more what goes for it, as far as it will be missed
    weight: Column  # of a second that it computes: lambda, and the answers it delays
    num_cached: Column  # tokens, by the prompt's turn
    is_fetched: NDArray[np.bool_]
    holder: int  # from whom


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    may_fetch: bool = True
    eviction_weight: float = 0.5

    def begin(self, seed: int) -> Reuse:
        return Reuse(seed)

    def choose(self, prompt: Prompt, loads: Loads, state: Reuse) -> tuple[Choice, Reuse]:
        bids = self.bids(prompt, loads, state)
        index, random = draw_least_of(bids.price_s, state.random)
        source = bids.holder if bids.is_fetched[index] else None
        found = state.after(float(bids.num_cached[index]), prompt.num_tokens, random)
        return Choice(index, source, tuple(bids.price_s.tolist())), found

    def bids(self, prompt: Prompt, loads: Loads, state: Reuse) -> Bids:
        columns = loads.columns
        cached = np.array(prompt.cached, dtype=np.float64)
        token_s = columns.c1 + columns.c3 * prompt.num_tokens
        fixed_s = columns.c0 + columns.c2 * prompt.num_tokens
        prefill_s = fixed_s + token_s * np.maximum(prompt.num_tokens - cached, 1.0)
        due_s = prompt.stretch * prefill_s + (prompt.now_s + prompt.slack_s)
        wait_s = columns.wait_s(prompt.now_s, due_s)
        num_evicted = np.maximum(prompt.num_tokens - cached - columns.num_unused_tokens, 0.0)
        evicted_s = (self.eviction_weight * state.share) * token_s * num_evicted
        weight = columns.num_delayed + backlog_of(loads)
        price_s = prompt.weight * wait_s + weight * (prefill_s + evicted_s)
        own = Bids(
            price_s, wait_s, prefill_s, evicted_s, weight, cached, np.zeros(len(loads), bool), 0
        )
        holder = int(np.argmax(prompt.ready))
        if not self.may_fetch or prompt.ready[holder] == 0:
            return own
        other = fetched(prompt, columns, own, holder)
        return merged(own, other, other.price_s < own.price_s)


def fetched(prompt: Prompt, columns: Columns, own: Bids, holder: int) -> Bids:
    """The same with a prefix that is fetched from the holder; dear where nothing is to fetch."""
    num_ready, costs = prompt.ready[holder], prompt.costs
    num_bytes = (num_ready - own.num_cached) * columns.token_bytes
    fetch_s = costs.setup_s[:, holder] + costs.s_per_byte[:, holder] * num_bytes
    wait_s = np.maximum(own.wait_s, np.where(num_bytes > 0, fetch_s, CANNOT))
    token_s = columns.c1 + columns.c3 * prompt.num_tokens
    fixed_s = columns.c0 + columns.c2 * prompt.num_tokens
    prefill_s = fixed_s + token_s * max(prompt.num_tokens - num_ready, 1)
    return own._replace(
        price_s=prompt.weight * wait_s + own.weight * (prefill_s + own.evicted_s),
        wait_s=wait_s,
        prefill_s=prefill_s,
        num_cached=np.full(len(wait_s), float(num_ready)),
        holder=holder,
    )


def merged(own: Bids, other: Bids, is_fetched: NDArray[np.bool_]) -> Bids:
    """The other where it is fetched."""
    if not is_fetched.any():
        return own
    return own._replace(
        price_s=np.where(is_fetched, other.price_s, own.price_s),
        wait_s=np.where(is_fetched, other.wait_s, own.wait_s),
        prefill_s=np.where(is_fetched, other.prefill_s, own.prefill_s),
        num_cached=np.where(is_fetched, other.num_cached, own.num_cached),
        is_fetched=is_fetched,
        holder=other.holder,
    )


def backlog_of(loads: Loads) -> float:
    """Lambda."""
    num_computing = loads.num_prefill or len(loads)
    return 1.0 + float(loads.columns.num_prompts[:num_computing].sum()) / max(1, num_computing)


def draw_least_of(prices: Column, random: int) -> tuple[int, int]:
    """Position of the least price, any of equals."""
    least = prices.min()
    tied = np.flatnonzero(prices <= least + _TIE * abs(least))
    if len(tied) == 1:
        return int(tied[0]), random
    position, random = draw_index(len(tied), random)
    return int(tied[position]), random
