"""SGLang's gateway, `cache_aware` with KV events: affinity while the loads are balanced, the
least loaded worker once they are not. Defaults of its command line.
"""

from dataclasses import dataclass

from router.bounds import check_between
from router.load import Loads
from router.policies.rule import Choice, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class SglangCacheAware:
    balance_abs_threshold: int = 64  # requests in flight: most less least
    balance_rel_threshold: float = 1.5  # most / least

    def __post_init__(self) -> None:
        check_between("the absolute threshold", self.balance_abs_threshold, least=0, most=10**6)
        check_between("the relative threshold", self.balance_rel_threshold, least=1.0, most=1e6)

    def begin(self, seed: int) -> None:
        return None

    def choose(self, prompt: Prompt, loads: Loads, state: None) -> tuple[Choice, None]:
        in_flight = [load.num_in_flight for load in loads]
        most, fewest = max(in_flight), min(in_flight)
        is_imbalanced = (
            most - fewest > self.balance_abs_threshold
            and most > self.balance_rel_threshold * fewest
        )
        overlaps = [0 if is_imbalanced else num_cached for num_cached in prompt.cached.tolist()]
        # The largest overlap; ties by load, then by order. Without any: the least loaded.
        index = min(range(len(loads)), key=lambda i: (-overlaps[i], in_flight[i], i))
        return Choice(index, scores=tuple(float(-overlap) for overlap in overlaps)), None
