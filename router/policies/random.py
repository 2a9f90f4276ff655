"""Any of them, seeded."""

from collections.abc import Sequence
from dataclasses import dataclass

from router.policies.rule import Choice, Load, Prompt, draw_index


@dataclass(frozen=True, slots=True, kw_only=True)
class Random:
    def begin(self, seed: int) -> int:
        return seed

    def choose(self, prompt: Prompt, loads: Sequence[Load], state: int) -> tuple[Choice, int]:
        index, state = draw_index(len(loads), state)
        return Choice(index), state
