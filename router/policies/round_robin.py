"""One after another, whatever they hold and do."""

from dataclasses import dataclass

from router.load import Loads
from router.policies.rule import Computing, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRobin:
    def begin(self, seed: int) -> int:
        return seed

    def choose(self, prompt: Prompt, loads: Loads, state: int) -> tuple[Computing, int]:
        return Computing(state % len(loads)), state + 1
