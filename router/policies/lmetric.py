"""LMetric (arXiv 2603.15202): new prefill tokens there, times the batch there; no weights."""

from collections.abc import Sequence
from dataclasses import dataclass

from router.policies.rule import Choice, Load, Prompt, draw_least


@dataclass(frozen=True, slots=True, kw_only=True)
class LMetric:
    def begin(self, seed: int) -> int:
        return seed

    def choose(self, prompt: Prompt, loads: Sequence[Load], state: int) -> tuple[Choice, int]:
        scores = tuple(float(load.num_new(prompt) * (load.num_in_flight + 1)) for load in loads)
        index, state = draw_least(scores, state)
        return Choice(index, scores=scores), state
