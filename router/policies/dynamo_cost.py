"""Dynamo's `kv` router (1.6.1): cost in KV blocks, prefill still to do plus decode held; the least
wins, ties at random.
"""

from dataclasses import dataclass

from cluster.bounds import check_between
from router.load import Load, Loads
from router.policies.rule import Computing, Prompt, draw_least


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamoCost:
    prefill_load_scale: float = 1.0
    overlap_credit: float = 1.0  # of blocks cached on the device
    decode_active_request_weight: float = 0.0

    def __post_init__(self) -> None:
        weights = (self.prefill_load_scale, self.overlap_credit, self.decode_active_request_weight)
        for weight in weights:
            check_between("a weight of the cost", weight, least=0.0, most=1e6)

    def begin(self, seed: int) -> int:
        return seed

    def choose(self, prompt: Prompt, loads: Loads, state: int) -> tuple[Computing, int]:
        scores = tuple(self._cost(prompt, i, load) for i, load in enumerate(loads))
        index, state = draw_least(scores, state)
        return Computing(index, scores=scores), state

    def _cost(self, prompt: Prompt, index: int, load: Load) -> float:
        block = prompt.block_tokens
        overlap = self.overlap_credit * (float(prompt.cached[index]) // block)
        prefill = max((load.num_prefill_tokens + prompt.num_tokens) / block - overlap, 0.0)
        decode = load.num_context_tokens / block + -(-prompt.num_tokens // block)
        requests = self.decode_active_request_weight * load.num_in_flight
        return self.prefill_load_scale * prefill + decode + requests
