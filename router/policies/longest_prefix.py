"""The longest cached prefix, and nothing else. A trap kept as a baseline: where all prompts
share a system prompt, all of them follow its first holder.
"""

from dataclasses import dataclass

from router.load import Loads
from router.policies.rule import Computing, Prompt, draw_least


@dataclass(frozen=True, slots=True, kw_only=True)
class LongestPrefix:
    def begin(self, seed: int) -> int:
        return seed

    def choose(self, prompt: Prompt, loads: Loads, state: int) -> tuple[Computing, int]:
        scores = tuple(float(-num_cached) for num_cached in prompt.cached.tolist())
        index, state = draw_least(scores, state)
        return Computing(index, scores=scores), state
