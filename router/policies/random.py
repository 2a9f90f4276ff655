"""Any of them, seeded."""

from dataclasses import dataclass

from router.load import Loads
from router.policies.rule import Computing, Prompt, draw_index


@dataclass(frozen=True, slots=True, kw_only=True)
class Random:
    def begin(self, seed: int) -> int:
        return seed

    def choose(self, prompt: Prompt, loads: Loads, state: int) -> tuple[Computing, int]:
        index, state = draw_index(len(loads), state)
        return Computing(index), state
