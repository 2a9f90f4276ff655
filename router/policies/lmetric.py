"""LMetric (arXiv 2603.15202): new prefill tokens there, times the batch there; no weights."""

from dataclasses import dataclass

from router.load import Loads
from router.policies.rule import Computing, Prompt, draw_least


@dataclass(frozen=True, slots=True, kw_only=True)
class LMetric:
    def begin(self, seed: int) -> int:
        return seed

    def choose(self, prompt: Prompt, loads: Loads, state: int) -> tuple[Computing, int]:
        scores = tuple(prompt.num_new(i) * (load.num_in_flight + 1) for i, load in enumerate(loads))
        index, state = draw_least(scores, state)
        return Computing(index, scores=scores), state
