"""The default: the least price in seconds,

    wait + lambda * (fetch + prefill seconds that this prompt adds there),

over every worker, each with its own match or with one fetched from the longest holder. Lambda
is 1 plus the mean requests per worker: below saturation the request's own latency wins, near
it cache reuse does. A fetch runs beside the queue, so that only what outlasts it is waited for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from router.policies.rule import Choice, Load, Prompt, draw_least


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    may_fetch: bool = True

    def begin(self, seed: int) -> int:
        return seed

    def choose(self, prompt: Prompt, loads: Sequence[Load], state: int) -> tuple[Choice, int]:
        backlog = 1.0 + sum(load.num_in_flight for load in loads) / len(loads)
        holder = max(range(len(loads)), key=lambda i: loads[i].num_ready)
        holder_or_none = holder if self.may_fetch else None
        candidates = list(_priced(prompt, loads, holder_or_none, backlog))
        position, state = draw_least([price_s for price_s, _, _ in candidates], state)
        _, index, source = candidates[position]
        scores = tuple(load.wait_s + backlog * load.prefill_s(prompt) for load in loads)
        return Choice(index, source, scores), state


def _priced(
    prompt: Prompt, loads: Sequence[Load], holder: int | None, backlog: float
) -> Iterator[tuple[float, int, int | None]]:
    """(price in seconds, worker, source) of each candidate."""
    for index, load in enumerate(loads):
        yield load.wait_s + backlog * load.prefill_s(prompt), index, None
        if holder is None or not load.fetch_s_per_token:
            continue
        num_missing = loads[holder].num_ready - load.num_cached
        if num_missing > 0:
            fetch_s = load.fetch_setup_s + load.fetch_s_per_token * num_missing
            added_s = load.prefill_s(prompt, loads[holder].num_ready)
            yield max(load.wait_s, fetch_s) + backlog * added_s, index, holder
