"""One after another, whatever they hold and do."""

from dataclasses import dataclass

from router.load import Loads
from router.policies.rule import Choice, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRobin:
    def begin(self, seed: int) -> int:
        return seed

    def choose(self, prompt: Prompt, loads: Loads, state: int) -> tuple[Choice, int]:
        return Choice(state % len(loads)), state + 1
