"""The least predicted seconds of work ahead."""

from dataclasses import dataclass

from router.load import Loads
from router.policies.rule import Choice, Prompt, draw_least


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastWork:
    def begin(self, seed: int) -> int:
        return seed

    def choose(self, prompt: Prompt, loads: Loads, state: int) -> tuple[Choice, int]:
        scores = tuple(prompt.wait_s(i, load) for i, load in enumerate(loads))
        index, state = draw_least(scores, state)
        return Choice(index, scores=scores), state
