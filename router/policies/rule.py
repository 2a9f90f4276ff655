"""What a placement rule is told and what it answers. A rule is a pure function of
`(prompt, loads, its own state)`; it never sees a clock, a socket or a worker.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from cluster.types import PrefillCost, WorkerId

State = TypeVar("State")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """The request as a rule sees it."""

    num_tokens: int
    now_s: float = 0.0  # router's monotonic clock; for rules with windows
    block_tokens: int = 16  # what rules that count in blocks count in


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One worker that could compute the prompt: what it holds of it and what it has to do."""

    worker: WorkerId
    num_cached: int  # prompt tokens that it holds by the prompt's turn, and need not compute
    num_ready: int  # of these, computed by now: what others may fetch
    wait_s: float  # predicted, until the prompt's turn
    cost: PrefillCost  # as the worker has fitted it
    num_waiting: int = 0  # requests whose prompt is not being computed yet
    num_running: int = 0
    num_prefill_tokens: int = 0  # prompt tokens, waiting or begun, still to be computed
    num_context_tokens: int = 0  # of running answers
    num_free_tokens: int = 0  # of its KV pool; cached ones that nobody uses are free
    num_total_tokens: int = 0  # 0: unknown
    num_unused_tokens: int = 0  # of the free ones, those that hold nothing: no eviction yet
    fetch_s_per_token: float = 0.0  # of KV from another worker; 0: it cannot fetch
    fetch_setup_s: float = 0.0

    @property
    def num_in_flight(self) -> int:
        return self.num_waiting + self.num_running

    @property
    def kv_usage(self) -> float:
        """Share of its KV pool in use; 0 where it is unknown."""
        return 1.0 - self.num_free_tokens / self.num_total_tokens if self.num_total_tokens else 0.0

    def num_new(self, prompt: Prompt) -> int:
        """Tokens it would compute. The last one always is: it is sampled from."""
        return prompt.num_tokens - min(self.num_cached, prompt.num_tokens - 1)

    def prefill_s(self, prompt: Prompt, num_cached: int | None = None) -> float:
        """Predicted seconds of the prompt here, with this much of it cached."""
        cached = self.num_cached if num_cached is None else num_cached
        num_new = prompt.num_tokens - min(cached, prompt.num_tokens - 1)
        return self.cost.seconds(num_new, prompt.num_tokens)


@dataclass(frozen=True, slots=True)
class Choice:
    """Who computes, and from whom it fetches a longer prefix first."""

    index: int  # into the loads
    source: int | None = None
    scores: tuple[float, ...] = ()  # of each load, in the rule's own unit; for explaining


class Rule(Protocol, Generic[State]):
    """Rules are values: their parameters are their fields."""

    def begin(self, seed: int) -> State:
        """The state before the first request."""
        ...

    def choose(self, prompt: Prompt, loads: Sequence[Load], state: State) -> tuple[Choice, State]:
        """`loads` is never empty, and always in the same order of workers."""
        ...


def draw_least(scores: Sequence[float], state: int) -> tuple[int, int]:
    """Index of the least score, any of equals: the first of them would draw all that is cold."""
    lowest = min(scores)
    tied = [index for index, score in enumerate(scores) if score == lowest]
    if len(tied) == 1:
        return tied[0], state
    position, state = draw_index(len(tied), state)
    return tied[position], state


def draw(state: int) -> tuple[float, int]:
    """A number in [0, 1) and the next state: SplitMix64 (Steele et al. 2014)."""
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    mixed = state
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return (mixed ^ (mixed >> 31)) / 2.0**64, state


def draw_index(num: int, state: int) -> tuple[int, int]:
    number, state = draw(state)
    return int(number * num), state


_MASK = (1 << 64) - 1
