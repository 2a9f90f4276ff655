"""AIBrix `prefix-cache`: the best match among workers that are not far above the mean, the least
loaded once the spread of running requests is too wide.
"""

from dataclasses import dataclass
from statistics import fmean, pstdev

from router.bounds import check_between
from router.load import Loads
from router.policies.rule import Choice, Prompt, draw_least


@dataclass(frozen=True, slots=True, kw_only=True)
class AibrixPrefixCache:
    imbalance: int = 16  # running requests: most less least
    sigma_factor: float = 2.0

    def __post_init__(self) -> None:
        check_between("the imbalance", self.imbalance, least=0, most=1_000_000)
        check_between("the factor of sigma", self.sigma_factor, least=0.0, most=100.0)

    def begin(self, seed: int) -> int:
        return seed

    def choose(self, prompt: Prompt, loads: Loads, state: int) -> tuple[Choice, int]:
        in_flight = [load.num_in_flight for load in loads]
        scores = tuple(float(-num_cached) for num_cached in prompt.cached.tolist())
        ceiling = fmean(in_flight) + self.sigma_factor * pstdev(in_flight)
        is_balanced = max(in_flight) - min(in_flight) <= self.imbalance
        for index in sorted(range(len(loads)), key=lambda i: (scores[i], in_flight[i])):
            if is_balanced and prompt.cached[index] and in_flight[index] <= ceiling:
                return Choice(index, scores=scores), state
        index, state = draw_least(in_flight, state)
        return Choice(index, scores=scores), state
