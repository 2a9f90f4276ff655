"""The least predicted seconds of work ahead."""

from dataclasses import dataclass

from router.load import Loads
from router.policies.rule import Computing, Prompt, draw_least


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastWork:
    def begin(self, seed: int) -> int:
        return seed

    def choose(self, prompt: Prompt, loads: Loads, state: int) -> tuple[Computing, int]:
        scores = tuple(prompt.wait_s(i, load) for i, load in enumerate(loads))
        index, state = draw_least(scores, state)
        return Computing(index, scores=scores), state
