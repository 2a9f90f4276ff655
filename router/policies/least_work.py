"""The least predicted seconds of work ahead."""

from collections.abc import Sequence
from dataclasses import dataclass

from router.policies.rule import Choice, Load, Prompt, draw_least


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastWork:
    def begin(self, seed: int) -> int:
        return seed

    def choose(self, prompt: Prompt, loads: Sequence[Load], state: int) -> tuple[Choice, int]:
        scores = tuple(load.wait_s for load in loads)
        index, state = draw_least(scores, state)
        return Choice(index, scores=scores), state
