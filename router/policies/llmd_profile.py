"""llm-d's scheduling profile: filters, then weighted scorers in [0, 1], then a picker. The
defaults are its built-in profile (v0.10): queue 2, KV utilisation 2, prefix cache 3, best score.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cluster.bounds import check_between, check_choice
from router.load import Load, Loads
from router.policies.rule import Computing, Prompt, draw

Scorer = Callable[[Prompt, Sequence[Load]], list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmdProfile:
    weights: Mapping[str, float] = field(
        default_factory=lambda: {
            "queue-scorer": 2.0,
            "kv-cache-utilization-scorer": 2.0,
            "prefix-cache-scorer": 3.0,
        }
    )
    picker: str = "max-score-picker"
    max_waiting: int | None = None  # utilization-filter: workers above it are left out
    max_prefix_tokens: int = 131_072  # of a prompt, what is compared with what is cached

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            check_choice(name, "scorer", SCORERS)
            check_between(f"the weight of '{name}'", weight, least=0.0, most=1e6)
        check_choice(self.picker, "picker", PICKERS)
        if self.max_waiting is not None:
            check_between("the limit of waiting requests", self.max_waiting, least=0, most=10**6)
        check_between("the longest prefix", self.max_prefix_tokens, "tokens", least=1, most=10**9)

    def begin(self, seed: int) -> int:
        return seed

    def choose(self, prompt: Prompt, loads: Loads, state: int) -> tuple[Computing, int]:
        kept = self._filtered(loads)
        prompt = prompt._replace(
            num_tokens=min(prompt.num_tokens, self.max_prefix_tokens),
            cached=np.minimum(prompt.cached[kept], self.max_prefix_tokens),
        )
        totals = [0.0] * len(kept)
        for name, weight in self.weights.items():
            scores = SCORERS[name](prompt, [loads[i] for i in kept])
            totals = [total + weight * score for total, score in zip(totals, scores, strict=True)]
        position, state = PICKERS[self.picker](totals, state)
        scores_of = dict(zip(kept, totals, strict=True))
        shown = tuple(scores_of.get(i, float("-inf")) for i in range(len(loads)))
        return Computing(kept[position], scores=shown), state

    def _filtered(self, loads: Sequence[Load]) -> list[int]:
        """Fails open: a filter that leaves nobody leaves everybody."""
        everybody = list(range(len(loads)))
        if self.max_waiting is None:
            return everybody
        return [i for i in everybody if loads[i].num_waiting <= self.max_waiting] or everybody


def _prefix_cache(prompt: Prompt, loads: Sequence[Load]) -> list[float]:
    return [num_cached / prompt.num_tokens for num_cached in prompt.cached.tolist()]


def _least_is_one(values: Sequence[float]) -> list[float]:
    """Min-max, the least scores 1; all equal score 1."""
    low, high = min(values), max(values)
    return [1.0 if high == low else (high - value) / (high - low) for value in values]


def _queue(prompt: Prompt, loads: Sequence[Load]) -> list[float]:
    return _least_is_one([load.num_waiting for load in loads])


def _running(prompt: Prompt, loads: Sequence[Load]) -> list[float]:
    return _least_is_one([load.num_running for load in loads])


def _kv_utilization(prompt: Prompt, loads: Sequence[Load]) -> list[float]:
    return [1.0 - load.kv_usage for load in loads]


def _load_aware(prompt: Prompt, loads: Sequence[Load]) -> list[float]:
    """0.5 with an empty queue, down to 0 at the threshold of 128."""
    return [0.5 * (1.0 - min(load.num_waiting, 128) / 128) for load in loads]


def _active_request(prompt: Prompt, loads: Sequence[Load]) -> list[float]:
    """1 when idle, else by how much less it has than the busiest."""
    most = max(load.num_in_flight for load in loads)
    return [1.0 - load.num_in_flight / most if most else 1.0 for load in loads]


def _token_load(prompt: Prompt, loads: Sequence[Load]) -> list[float]:
    return [max(0.0, 1.0 - load.num_prefill_tokens / 4_194_304) for load in loads]


SCORERS: dict[str, Scorer] = {
    "prefix-cache-scorer": _prefix_cache,
    "queue-scorer": _queue,
    "running-requests-size-scorer": _running,
    "kv-cache-utilization-scorer": _kv_utilization,
    "load-aware-scorer": _load_aware,
    "active-request-scorer": _active_request,
    "token-load-scorer": _token_load,
}


def _pick_max(totals: Sequence[float], state: int) -> tuple[int, int]:
    """Ties at random."""
    best = max(totals)
    tied = [i for i, total in enumerate(totals) if total == best]
    number, state = draw(state)
    return tied[int(number * len(tied))], state


def _pick_random(totals: Sequence[float], state: int) -> tuple[int, int]:
    number, state = draw(state)
    return int(number * len(totals)), state


def _pick_weighted(totals: Sequence[float], state: int) -> tuple[int, int]:
    """Picks with a probability in proportion to the score."""
    number, state = draw(state)
    left = number * sum(totals)
    for index, total in enumerate(totals):
        left -= total
        if left < 0:
            return index, state
    return len(totals) - 1, state


PICKERS: dict[str, Callable[[Sequence[float], int], tuple[int, int]]] = {
    "max-score-picker": _pick_max,
    "random-picker": _pick_random,
    "weighted-random-picker": _pick_weighted,
}
