"""Mooncake's Algorithm 1 (FAST'25, arXiv 2407.00079): the least predicted TTFT, where a worker
whose own match is much shorter than the best is assumed to fetch the best one.
"""

from dataclasses import dataclass

from cluster.bounds import check_between
from router.load import Load, Loads
from router.policies.rule import Computing, Prompt, draw_least


@dataclass(frozen=True, slots=True, kw_only=True)
class MooncakeAlgorithm1:
    balancing_threshold: float = 2.0  # best match / own match, above which it is fetched
    may_fetch: bool = True

    def __post_init__(self) -> None:
        check_between("the threshold of balancing", self.balancing_threshold, least=0.0, most=1e6)

    def begin(self, seed: int) -> int:
        return seed

    def choose(self, prompt: Prompt, loads: Loads, state: int) -> tuple[Computing, int]:
        holder = int(prompt.ready.argmax())
        fetching = [self._fetches(prompt, i, holder) for i in range(len(loads))]
        scores = tuple(
            prompt.wait_s(i, load)
            + (_fetched_s(prompt, i, load, holder) if fetches else prompt.prefill_s(i, load))
            for i, (load, fetches) in enumerate(zip(loads, fetching, strict=True))
        )
        index, state = draw_least(scores, state)
        return Computing(index, holder if fetching[index] else None, scores), state

    def _fetches(self, prompt: Prompt, index: int, holder: int) -> bool:
        best, own = float(prompt.ready[holder]), float(prompt.cached[index])
        return self.may_fetch and best > own and best > self.balancing_threshold * own


def _fetched_s(prompt: Prompt, index: int, load: Load, holder: int) -> float:
    best = float(prompt.ready[holder])
    num_bytes = (best - float(prompt.cached[index])) * load.token_bytes
    transfer_s = prompt.costs.seconds(index, holder, num_bytes)
    return transfer_s + load.prefill_s(prompt.num_tokens, best)
