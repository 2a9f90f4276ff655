"""SGLang's gateway (as Shepherd Model Gateway 1.13.0), `cache_aware` with KV events, defaults of
its command line: the longest match, unless who holds it is far busier than the mean; among equals,
and without a match, the least expected wait.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from statistics import fmean
from typing import Final

from cluster.bounds import check_above, check_between
from router.load import Load, Loads
from router.policies.rule import Computing, Prompt, draw_least

_LEAST_MARGIN: Final = 4  # requests: so many more than the mean are no pressure yet
# Of the expected wait: what it takes a worker to compute that does not say, a running request to
# weigh, and KV in use to cost.
_TOKENS_PER_S: Final = 2000.0
_REQUEST_TOKENS: Final = 1024
_KV_PRESSURE_S: Final = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class SglangCacheAware:
    # Not taken for its match: who has this many requests more than the mean (or two sigma more,
    # if that is less), and this many times the mean.
    balance_abs_threshold: int = 64
    balance_rel_threshold: float = 1.5
    # Left out while others are not: who has so many waiting, or so much of its KV in use. No part
    # of its rule, but of its gateway, which takes 8 and 0.8.
    overload_waiting: int | None = None
    overload_kv_usage: float | None = None

    def __post_init__(self) -> None:
        check_between("the absolute threshold", self.balance_abs_threshold, least=0, most=10**6)
        check_between("the relative threshold", self.balance_rel_threshold, least=1.0, most=1e6)
        if self.overload_waiting is not None:
            check_between("the overload's waiting", self.overload_waiting, least=1, most=10**6)
        if self.overload_kv_usage is not None:
            check_above("the overload's KV usage", self.overload_kv_usage, least=0.0, most=1.0)

    def begin(self, seed: int) -> int:
        return seed

    def choose(self, prompt: Prompt, loads: Loads, state: int) -> tuple[Computing, int]:
        scores = tuple((-prompt.cached).tolist())
        eligible = [i for i, load in enumerate(loads) if not self._is_overloaded(load)]
        if not eligible:
            index, state = draw_least([load.num_in_flight for load in loads], state)
            return Computing(index, scores=scores), state
        group = self._group(prompt, loads, eligible)
        position, state = draw_least([_expected_wait_s(loads[i]) for i in group], state)
        return Computing(group[position], scores=scores), state

    def _group(self, prompt: Prompt, loads: Loads, eligible: Sequence[int]) -> Sequence[int]:
        """Among whom the wait decides: the holders of the longest match; if all of these are
        under pressure, those who are not."""
        longest = max(prompt.cached[i] for i in eligible)
        if not longest:
            return eligible
        mean = fmean(loads[i].num_in_flight for i in eligible)
        calm = [i for i in eligible if not self._is_pressed(loads[i], mean)]
        return [i for i in calm if prompt.cached[i] == longest] or calm or eligible

    def _is_pressed(self, load: Load, mean: float) -> bool:
        margin = min(self.balance_abs_threshold, max(_LEAST_MARGIN, ceil(2.0 * sqrt(mean))))
        return load.num_in_flight > max(self.balance_rel_threshold * mean, mean + margin)

    def _is_overloaded(self, load: Load) -> bool:
        waiting, usage = self.overload_waiting, self.overload_kv_usage
        return (waiting is not None and load.num_waiting >= waiting) or (
            usage is not None and load.kv_usage >= usage
        )


def _expected_wait_s(load: Load) -> float:
    num_tokens = load.num_prefill_tokens + _REQUEST_TOKENS * load.num_running
    usage = min(load.kv_usage, 0.999)
    return num_tokens / _TOKENS_PER_S + _KV_PRESSURE_S * usage / (1.0 - usage)
