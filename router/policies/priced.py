"""The default: the least price in seconds,

    wait + lambda * (prefill seconds that this prompt adds there + those it will cost to
    recompute what its KV evicts there),

over every worker, each with its own match or with one fetched from the longest holder. Lambda
is 1 plus the mean requests per worker: below saturation the request's own latency wins, near
it cache reuse does. A fetch runs beside the queue, so that only what outlasts it is waited for.

What is evicted was used least recently: it is taken to be missed half as often as prompt
tokens are found cached at all. Without this term copies made by fetching drive out of small
caches more than they bring.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from router.policies.rule import Choice, Load, Prompt, draw_least

_KEPT = 0.999  # of what was observed, at each request


class Reuse(NamedTuple):
    """How much of the prompts was found cached lately."""

    random: int
    num_hits: float = 0.0
    num_tokens: float = 0.0

    @property
    def share(self) -> float:
        return self.num_hits / self.num_tokens if self.num_tokens else 0.0


class _Candidate(NamedTuple):
    price_s: float
    worker: int
    source: int | None
    num_cached: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    may_fetch: bool = True
    eviction_weight: float = 0.5

    def begin(self, seed: int) -> Reuse:
        return Reuse(seed)

    def choose(self, prompt: Prompt, loads: Sequence[Load], state: Reuse) -> tuple[Choice, Reuse]:
        backlog = 1.0 + sum(load.num_in_flight for load in loads) / len(loads)
        missed = self.eviction_weight * state.share
        own = [_own(prompt, load, i, backlog, missed) for i, load in enumerate(loads)]
        fetched = _fetched(prompt, loads, backlog, missed) if self.may_fetch else ()
        candidates = [*own, *fetched]
        position, random = draw_least([each.price_s for each in candidates], state.random)
        chosen = candidates[position]
        found = Reuse(
            random=random,
            num_hits=_KEPT * state.num_hits + min(chosen.num_cached, prompt.num_tokens),
            num_tokens=_KEPT * state.num_tokens + prompt.num_tokens,
        )
        scores = tuple(each.price_s for each in own)
        return Choice(chosen.worker, chosen.source, scores), found


def _own(prompt: Prompt, load: Load, index: int, backlog: float, missed: float) -> _Candidate:
    added_s = load.prefill_s(prompt) + missed * _evicted_s(prompt, load)
    return _Candidate(load.wait_s + backlog * added_s, index, None, load.num_cached)


def _fetched(
    prompt: Prompt, loads: Sequence[Load], backlog: float, missed: float
) -> Iterator[_Candidate]:
    """Every worker that could fetch from the one that holds most, and holds less itself."""
    holder = max(range(len(loads)), key=lambda i: loads[i].num_ready)
    num_ready = loads[holder].num_ready
    for index, load in enumerate(loads):
        num_missing = num_ready - load.num_cached
        if num_missing > 0 and load.fetch_s_per_token:
            fetch_s = load.fetch_setup_s + load.fetch_s_per_token * num_missing
            added_s = load.prefill_s(prompt, num_ready) + missed * _evicted_s(prompt, load)
            price_s = max(load.wait_s, fetch_s) + backlog * added_s
            yield _Candidate(price_s, index, holder, num_ready)


def _evicted_s(prompt: Prompt, load: Load) -> float:
    """Seconds to compute once more all that has to go for this prompt's KV."""
    num_evicted = prompt.num_tokens - load.num_cached - load.num_unused_tokens
    per_token_s = load.cost.c1 + load.cost.c3 * prompt.num_tokens
    return per_token_s * num_evicted if num_evicted > 0 and load.num_total_tokens else 0.0
