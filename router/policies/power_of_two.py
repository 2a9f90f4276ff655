"""Two at random, the less loaded of them (Mitzenmacher 2001), as SGLang's gateway has it: lower
KV use if both report it, else fewer requests in flight.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from router.load import Load, Loads
from router.policies.rule import Computing, Prompt, draw_index


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerOfTwo:
    def begin(self, seed: int) -> int:
        return seed

    def choose(self, prompt: Prompt, loads: Loads, state: int) -> tuple[Computing, int]:
        first, state = draw_index(len(loads), state)
        if len(loads) == 1:
            return Computing(first), state
        step, state = draw_index(len(loads) - 1, state)
        second = (first + 1 + step) % len(loads)
        return Computing(min((first, second), key=lambda i: _load(loads, i, first, second))), state


def _load(loads: Sequence[Load], index: int, first: int, second: int) -> float:
    both_report = all(loads[i].is_size_known for i in (first, second))
    return loads[index].kv_usage if both_report else loads[index].num_in_flight
