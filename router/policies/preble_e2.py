"""Preble's E2 (ICLR'25, arXiv 2407.00023): exploit the longest match where more is matched than
missed, else explore; among those allowed, the least load cost = L (work ahead) + M (computing
again what the prompt would evict, as often as it was used within three minutes) + P (its missed
part).

Preble estimates L from what it assigned in that time; here workers report it. What goes first was
used longest ago: in that time only where more was computed than there is room for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp
from types import MappingProxyType
from typing import Final, NamedTuple

from cluster.types import WorkerId
from router.load import Load, Loads
from router.policies.rule import Computing, Prompt, draw_least

_WINDOW_S: Final = 180.0
_NOTHING: Final[Mapping[WorkerId, float]] = MappingProxyType({})


class RecentWork(NamedTuple):
    random: int
    num_new: Mapping[WorkerId, float] = _NOTHING  # tokens computed there within the window
    at_s: float = 0.0

    def recent(self, loads: Loads, now_s: float) -> dict[WorkerId, float]:
        """`num_new` as of now: what is older counts less and less."""
        kept = exp(min(0.0, self.at_s - now_s) / _WINDOW_S)
        return {load.worker: kept * self.num_new.get(load.worker, 0.0) for load in loads}


@dataclass(frozen=True, slots=True, kw_only=True)
class PrebleE2:
    def begin(self, seed: int) -> RecentWork:
        return RecentWork(seed)

    def choose(
        self, prompt: Prompt, loads: Loads, state: RecentWork
    ) -> tuple[Computing, RecentWork]:
        recent = state.recent(loads, prompt.now_s)
        best = float(prompt.cached.max())
        exploits = best > prompt.num_tokens - best
        scores = tuple(
            _load_cost(prompt, i, load, recent[load.worker])
            if not exploits or prompt.cached[i] == best
            else float("inf")
            for i, load in enumerate(loads)
        )
        index, random = draw_least(scores, state.random)
        recent[loads[index].worker] += prompt.num_new(index)
        return Computing(index, scores=scores), RecentWork(random, recent, prompt.now_s)


def _load_cost(prompt: Prompt, index: int, load: Load, num_recent: float) -> float:
    num_evicted = max(0.0, num_recent + prompt.num_new(index) - load.num_total_tokens)
    evicted_s = load.c1 * num_evicted
    return prompt.wait_s(index, load) + evicted_s + prompt.prefill_s(index, load)
