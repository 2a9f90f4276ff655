"""Mooncake's Algorithm 1 (FAST'25, arXiv 2407.00079): the least predicted TTFT, where a worker
whose own match is much shorter than the best is assumed to fetch the best one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from router.policies.rule import Choice, Load, Prompt, draw_least


@dataclass(frozen=True, slots=True, kw_only=True)
class MooncakeAlgorithm1:
    balancing_threshold: float = 2.0  # best match / own match, above which it is fetched
    may_fetch: bool = True

    def begin(self, seed: int) -> int:
        return seed

    def choose(self, prompt: Prompt, loads: Sequence[Load], state: int) -> tuple[Choice, int]:
        holder = max(range(len(loads)), key=lambda i: loads[i].num_ready)
        best = loads[holder].num_ready
        fetching = [self._fetches(load, best) for load in loads]
        scores = tuple(
            load.wait_s + (_fetched_s(prompt, load, best) if fetches else load.prefill_s(prompt))
            for load, fetches in zip(loads, fetching, strict=True)
        )
        index, state = draw_least(scores, state)
        return Choice(index, holder if fetching[index] else None, scores), state

    def _fetches(self, load: Load, best: int) -> bool:
        if not self.may_fetch or not load.fetch_s_per_token or best <= load.num_cached:
            return False
        return best > self.balancing_threshold * load.num_cached


def _fetched_s(prompt: Prompt, load: Load, best: int) -> float:
    transfer_s = load.fetch_setup_s + load.fetch_s_per_token * (best - load.num_cached)
    return transfer_s + load.prefill_s(prompt, best)
