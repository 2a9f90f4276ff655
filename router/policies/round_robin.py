"""One after another, whatever they hold and do."""

from collections.abc import Sequence
from dataclasses import dataclass

from router.policies.rule import Choice, Load, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRobin:
    def begin(self, seed: int) -> int:
        return seed

    def choose(self, prompt: Prompt, loads: Sequence[Load], state: int) -> tuple[Choice, int]:
        return Choice(state % len(loads)), state + 1
