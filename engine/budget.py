"""Says what one step may compute, and cuts prompts to it. Pure."""

from dataclasses import dataclass
from math import inf

from cluster.types import PrefillCost

_LEAST_TOKENS = 16  # of a chunk, while a step has nothing else to do


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limits one step."""

    max_sequences: int
    max_tokens: int
    chunk_s: float = inf  # predicted seconds of prompt work


class StepRoom:
    """Holds what is left of the budget in the step that is being formed."""

    def __init__(self, budget: Budget, num_decoding: int) -> None:
        """Begins after `num_decoding` answers have their token in the step."""
        self._num_tokens = budget.max_tokens - num_decoding
        self._seconds = budget.chunk_s
        self._is_first = True  # no prompt is in it yet

    @property
    def is_full(self) -> bool:
        return self._num_tokens <= 0 or self._seconds <= 0

    def take(self, num_left: int, num_context: int, cost: PrefillCost) -> int:
        """Takes in as much of a prompt that has `num_left` tokens to be computed after
        `num_context` others, and returns how many that are."""
        num_new = self._fitting(num_left, num_context, cost)
        if num_new > 0:
            self._is_first = False
            self._num_tokens -= num_new
            self._seconds -= cost.seconds(num_new, num_context)
        return num_new

    def _fitting(self, num_left: int, num_context: int, cost: PrefillCost) -> int:
        """None where the context, which costs the same for any number of tokens, would cost more
        than they do; but the first prompt of a step has as many as are worth it, and a small
        chunk at least, however long that takes."""
        slope = cost.c1 + cost.c3 * num_context
        if slope <= 0 or self._seconds == inf:
            return min(num_left, self._num_tokens)
        context_s = cost.c2 * num_context
        num_worth = min(num_left, int(context_s / slope))
        fitting = int((self._seconds - cost.c0 - context_s) / slope)
        if self._is_first:
            fitting = max(fitting, num_worth, _LEAST_TOKENS)
        elif min(fitting, self._num_tokens) < num_worth:
            return 0
        return min(num_left, self._num_tokens, fitting)
