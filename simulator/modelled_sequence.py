"""A sequence that knows its hashes from the trace, and whose tokens all look alike."""

from collections.abc import Sequence as Ids
from hashlib import blake2b
from typing import Any

from cluster.block_hash import HASH_BYTES
from cluster.types import ComputeRequest, GenerationParams, GrainHash, SampledToken, SamplingParams
from engine.sequence import Sequence
from simulator.trace import TraceRequest

TOKEN = SampledToken(token_id=0)
_GREEDY = SamplingParams(seed=0, temperature=0.0)


class ModelledSequence(Sequence):
    """Its prompt's grains are the trace's; those that its answer is part of are its own."""

    __slots__ = ()

    def __init__(
        self,
        request_id: str,
        traced: TraceRequest,
        *,
        grain: int,
        due_at: float,
        num_emitted: int = 0,
        owner: Any = None,
    ) -> None:
        request = ComputeRequest(
            request_id=request_id,
            prompt_ids=(),
            params=GenerationParams(sampling=_GREEDY, max_tokens=traced.num_output_tokens),
            hash_key=b"",
        )
        super().__init__(request, owner=owner, arrived_at=due_at)
        self.prompt_ids = range(traced.num_prompt_tokens)  # type: ignore[assignment]
        self.output_ids = [TOKEN.token_id] * num_emitted
        self._grains = list(traced.grains[: traced.num_prompt_tokens // grain])

    @property
    def num_left(self) -> int:
        """Tokens that its answer still lacks."""
        return self.params.max_tokens - len(self.output_ids)

    def hashes(self, num_tokens: int, hash_grain: int) -> Ids[GrainHash]:
        num_grains = num_tokens // hash_grain
        while len(self._grains) < num_grains:
            name = f"{self.request_id}/{len(self._grains)}".encode()
            self._grains.append(GrainHash(blake2b(name, digest_size=HASH_BYTES).digest()))
        return self._grains[:num_grains]
