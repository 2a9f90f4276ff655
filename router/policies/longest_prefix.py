"""The longest cached prefix, and nothing else. A trap kept as a baseline: where all prompts
share a system prompt, all of them follow its first holder.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from router.policies.rule import Choice, Load, Prompt, draw_least


@dataclass(frozen=True, slots=True, kw_only=True)
class LongestPrefix:
    def begin(self, seed: int) -> int:
        return seed

    def choose(self, prompt: Prompt, loads: Sequence[Load], state: int) -> tuple[Choice, int]:
        scores = tuple(float(-load.num_cached) for load in loads)
        index, state = draw_least(scores, state)
        return Choice(index, scores=scores), state
