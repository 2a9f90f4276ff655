"""The default: the least price in seconds,

    wait + lambda * (prefill seconds that this prompt adds there + those it will cost to
    recompute what its KV evicts there),

over every worker, each with its own match or with one fetched from the longest holder. Lambda
is 1 plus the mean prompts per worker: below saturation the request's own latency wins, near it
cache reuse does. A worker that decodes, too, keeps its answers waiting meanwhile: lambda is
larger there by their number. A fetch runs beside the queue, so that only what outlasts it is
waited for.

What is evicted was used least recently: it is taken to be missed 0.7 times as often as prompt
tokens are found cached at all. Without this term copies made by fetching drive out of small
caches more than they bring.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.bounds import check_between
from router.load import Column, Columns, Loads
from router.pair_costs import CANNOT
from router.policies.rule import Choice, Prompt, draw_index

_KEPT = 0.999  # of what was observed, at each request
_TIE = 1e-9  # relative: prices this close are the same price
_NO_SCORES: Final[Mapping[int, float]] = MappingProxyType({})


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


class Way(NamedTuple):
    """A worker computes the prompt from what it holds, or from a prefix that it fetches.
    Float64 arrays [loads], seconds."""

    price_s: Column
    wait_s: Column  # until the prompt's turn, and the end of its fetch if there is one
    prefill_s: Column


class Bids(NamedTuple):
    """What it costs that a worker computes the prompt, and of what that is made."""

    price_s: Column  # of the better way
    own: Way
    evicted_s: Column  # to compute once more what goes for it, as far as it will be missed
    weight: Column  # of a second that it computes: lambda, and the answers it delays
    fetched: Way | None = None
    is_fetched: NDArray[np.bool_] | None = None  # whether that is the better way
    holder: int = 0  # from whom
    scores: Mapping[int, float] = _NO_SCORES  # by index, of a rule that prices in no seconds

    def fetches(self, index: int) -> bool:
        return self.is_fetched is not None and bool(self.is_fetched[index])

    def way(self, index: int) -> Way:
        """The better way of this worker."""
        return self.fetched if self.fetched is not None and self.fetches(index) else self.own

    def num_cached(self, index: int, prompt: Prompt) -> int:
        """Tokens that it need not compute, fetched ones included."""
        return int(prompt.ready[self.holder] if self.fetches(index) else prompt.cached[index])

    @property
    def prefill_s(self) -> Column:
        if self.fetched is None or self.is_fetched is None:
            return self.own.prefill_s
        return np.where(self.is_fetched, self.fetched.prefill_s, self.own.prefill_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    may_fetch: bool = True
    eviction_weight: float = 0.7

    def __post_init__(self) -> None:
        check_between("the weight of what is evicted", self.eviction_weight, least=0.0, most=100.0)

    def begin(self, seed: int) -> Reuse:
        return Reuse(seed)

    def choose(self, prompt: Prompt, loads: Loads, state: Reuse) -> tuple[Choice, Reuse]:
        bids = self.bids(prompt, loads, state)
        index, random = draw_least_of(bids.price_s, state.random)
        source = bids.holder if bids.fetches(index) else None
        found = state.after(bids.num_cached(index, prompt), prompt.num_tokens, random)
        return Choice(index, source, tuple(bids.price_s.tolist())), found

    def bids(self, prompt: Prompt, loads: Loads, state: Reuse) -> Bids:
        columns, num_tokens, cached = loads.columns, prompt.num_tokens, prompt.cached
        token_s = columns.c1 + columns.c3 * num_tokens
        whole_s = columns.c0 + columns.c2 * num_tokens + token_s * num_tokens
        prefill_s = whole_s - token_s * cached
        wait_s = columns.wait_s(prompt.now_s, prompt.now_s + prompt.due_s(prefill_s))
        num_evicted = np.maximum(num_tokens - cached - columns.num_unused_tokens, 0.0)
        evicted_s = (self.eviction_weight * state.share) * token_s * num_evicted
        weight = columns.num_delayed + backlog_of(loads)
        price_s = prompt.weight * wait_s + weight * (prefill_s + evicted_s)
        own = Way(price_s, wait_s, prefill_s)
        holder = int(prompt.ready.argmax())
        num_ready = float(prompt.ready[holder])
        if not self.may_fetch or not num_ready:
            return Bids(price_s, own, evicted_s, weight)
        fetch_s = _fetch_s(prompt, columns, holder, num_ready)
        wait_s = np.maximum(wait_s, fetch_s)
        prefill_s = whole_s - token_s * num_ready
        price_s = prompt.weight * wait_s + weight * (prefill_s + evicted_s)
        fetched = Way(price_s, wait_s, prefill_s)
        is_fetched = price_s < own.price_s
        price_s = np.minimum(price_s, own.price_s)
        return Bids(price_s, own, evicted_s, weight, fetched, is_fetched, holder)


def _fetch_s(prompt: Prompt, columns: Columns, holder: int, num_ready: float) -> Column:
    """Dear where nothing is to fetch."""
    missing, costs = num_ready - prompt.cached, prompt.costs
    s_per_token = costs.s_per_byte[:, holder] * columns.token_bytes
    fetch_s: Column = costs.setup_s[:, holder] + s_per_token * missing + CANNOT * (missing <= 0.0)
    return fetch_s


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
