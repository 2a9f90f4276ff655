"""Dynamo's `kv` router: cost in KV blocks, prefill still to do plus decode held; the least wins,
ties at random.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from router.policies.rule import Choice, Load, Prompt, draw_least


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamoCost:
    prefill_load_scale: float = 1.0
    overlap_credit: float = 1.0  # of blocks cached on the device
    decode_active_request_weight: float = 0.0

    def begin(self, seed: int) -> int:
        return seed

    def choose(self, prompt: Prompt, loads: Sequence[Load], state: int) -> tuple[Choice, int]:
        scores = tuple(self._cost(prompt, load) for load in loads)
        index, state = draw_least(scores, state)
        return Choice(index, scores=scores), state

    def _cost(self, prompt: Prompt, load: Load) -> float:
        block = prompt.block_tokens
        new_blocks = -(-prompt.num_tokens // block)
        overlap = self.overlap_credit * (load.num_cached // block)
        prefill = max(load.num_prefill_tokens / block + new_blocks - overlap, 0.0)
        decode = load.num_context_tokens / block + new_blocks
        requests = self.decode_active_request_weight * load.num_in_flight
        return self.prefill_load_scale * prefill + decode + requests
