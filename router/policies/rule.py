"""Says what a placement rule is told and answers. A rule is a pure function of `(prompt, loads, its
own state)`; it never sees a clock, a socket or a worker.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Generic, NamedTuple, Protocol, TypeVar

from router.load import Column, Load, Loads
from router.pair_costs import PairCosts

State = TypeVar("State")
Seconds = TypeVar("Seconds", float, Column)
Score = TypeVar("Score", float, tuple[float, float])


class Prompt(NamedTuple):
    """The request as a rule sees it, and what each worker holds of it: arrays [loads]."""

    num_tokens: int
    cached: Column  # tokens that it holds by the prompt's turn, and need not compute
    ready: Column  # of these, computed by now: what others may fetch
    costs: PairCosts  # of fetching
    num_siblings: Column | None = None  # prompts that wait there behind the same prefix
    now_s: float = 0.0  # router's monotonic clock
    slack_s: float = 0.0  # its first token is due at now + slack + stretch x prefill seconds:
    stretch: float = 0.0  # what orders a worker's queue
    late_after_s: float = inf  # from now: the target of its class for the first token
    most_late_s: float = 0.0  # so late it is as bad as it can be
    weight: float = 1.0  # of its own waiting, against everybody's work
    block_tokens: int = 16  # what rules that count in blocks count in

    def num_new(self, index: int) -> float:
        """Tokens that this worker would compute. The last one always is: it is sampled from."""
        return self.num_tokens - min(float(self.cached[index]), self.num_tokens - 1)

    def prefill_s(self, index: int, load: Load) -> float:
        """Predicted seconds of the prompt on this worker, from what it holds."""
        return load.prefill_s(self.num_tokens, float(self.cached[index]))

    def due_s(self, prefill_s: Seconds) -> Seconds:
        """Says when, from now, its first token is due on a worker that takes so long for it."""
        return self.stretch * prefill_s + self.slack_s

    def wait_s(self, index: int, load: Load) -> float:
        """Predicted seconds until its turn there."""
        due_s = self.now_s + self.due_s(self.prefill_s(index, load))
        return load.wait_s(self.now_s, due_s)


@dataclass(frozen=True, slots=True)
class Computing:
    """Names who computes, and from whom it fetches a longer prefix first."""

    index: int  # into the loads
    source: int | None = None
    scores: tuple[float, ...] = ()  # of each load, in the rule's own unit; for explaining


class Rule(Protocol, Generic[State]):
    """Rules are values: their parameters are their fields."""

    def begin(self, seed: int) -> State:
        """The state before the first request."""
        ...

    def choose(self, prompt: Prompt, loads: Loads, state: State) -> tuple[Computing, State]:
        """`loads` is never empty."""
        ...


def draw_least(scores: Sequence[Score], state: int) -> tuple[int, int]:
    """Index of the least score, any of equals: the first of them would draw all that is cold."""
    lowest = min(scores)
    tied = [index for index, score in enumerate(scores) if score == lowest]
    if len(tied) == 1:
        return tied[0], state
    position, state = draw_index(len(tied), state)
    return tied[position], state


def draw_least_of(prices: Column, random: int) -> tuple[int, int]:
    """Position of the least price, any of equals."""
    least = float(prices[prices.argmin()])  # a fifth of what `min` takes
    tied = (prices <= least + _TIE * abs(least)).nonzero()[0]
    if len(tied) == 1:
        return int(tied[0]), random
    position, random = draw_index(len(tied), random)
    return int(tied[position]), random


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
_TIE = 1e-9  # relative: prices this close are the same price
