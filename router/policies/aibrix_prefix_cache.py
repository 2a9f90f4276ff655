"""AIBrix `prefix-cache` (v0.7): the best match, in whole per cent, among workers that are not far
above the mean; only among the least loaded once the spread of running requests is too wide.
"""

from dataclasses import dataclass
from statistics import fmean, pstdev

from cluster.bounds import check_between
from router.load import Loads
from router.policies.rule import Computing, Prompt, draw_least


@dataclass(frozen=True, slots=True, kw_only=True)
class AibrixPrefixCache:
    imbalance: int = 16  # running requests: most less least
    sigma_factor: float = 2.0

    def __post_init__(self) -> None:
        check_between("the imbalance", self.imbalance, least=0, most=1_000_000)
        check_between("the factor of sigma", self.sigma_factor, least=0.0, most=100.0)

    def begin(self, seed: int) -> int:
        return seed

    def choose(self, prompt: Prompt, loads: Loads, state: int) -> tuple[Computing, int]:
        in_flight = [load.num_in_flight for load in loads]
        fewest = min(in_flight)
        ceiling = fmean(in_flight) + self.sigma_factor * pstdev(in_flight)
        if max(in_flight) - fewest > self.imbalance:
            ceiling = fewest
        per_cent = (100.0 * prompt.cached // prompt.num_tokens).tolist()
        scores = [
            (-match if num <= ceiling else 0.0, num)
            for match, num in zip(per_cent, in_flight, strict=True)
        ]
        index, state = draw_least(scores, state)
        return Computing(index, scores=tuple(-match for match in per_cent)), state
