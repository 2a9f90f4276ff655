"""One prompt on its way: computed here, written into the receiver's blocks layer by layer.

The scheduler tells it what happens; it puts what the receiver must hear into its outbox.
"""

import asyncio
import time
from collections.abc import Callable

from cluster.codec import prompt_logprob_to_pb, sampled_to_pb
from cluster.errors import InternalError, Overloaded
from cluster.types import ComputeRequest, Grant
from engine.batcher import Drawn
from engine.sequence import Sequence
from kv_transfer.outgoing import OutgoingTransfer
from penstock.v1 import worker_pb2 as pb

OpenTransfer = Callable[["HandOver"], OutgoingTransfer]


class HandOver:
    """Owns one sequence's story on a prefill worker; `outbox` is what it has to tell."""

    def __init__(
        self, request: ComputeRequest, open_transfer: OpenTransfer, *, overlap: bool = True
    ) -> None:
        self._received = time.monotonic()
        self.sequence = Sequence(
            request,
            num_choices=request.params.num_choices,
            owner=self,
            received_at=self._received,
        )
        self.outbox: asyncio.Queue[pb.PrefillResponse | Exception] = asyncio.Queue()
        self.transfer: OutgoingTransfer | None = None  # from when it is scheduled
        self.grant: Grant | None = None
        self.has_given_up = False
        self.has_ended = False  # the call; its transfer may go on
        self.is_computed = asyncio.Event()  # the first tokens are in the outbox
        self._open_transfer = open_transfer
        self._overlap = overlap
        self._scheduled = self._received
        self._forward_s = 0.0

    def scheduled(self) -> None:
        """Asks for destination blocks: now, not when it was queued."""
        self._scheduled = time.monotonic()
        self.transfer = self._open_transfer(self)
        if self._overlap:
            self.transfer.computed_all(self.sequence.num_cached)
        message = pb.Scheduled(
            queue_seconds=self._scheduled - self._received,
            cached_tokens=self.sequence.num_cached,
            num_tokens=self.sequence.num_tokens,
        )
        self.outbox.put_nowait(pb.PrefillResponse(scheduled=message))

    def computed(self, layer: int, num_tokens: int) -> None:
        """On the engine's thread."""
        assert self.transfer is not None
        if self._overlap:
            self.transfer.computed(layer, num_tokens)

    def chunk_done(self, seconds: float) -> None:
        self._forward_s += seconds

    def first_tokens(self, drawn: list[Drawn]) -> None:
        """Leaves at once: it does not wait for the KV."""
        assert self.transfer is not None
        self.transfer.computed_all(self.sequence.num_computed)
        message = pb.FirstTokens(
            tokens=[sampled_to_pb(each.token) for each in drawn if each.token is not None],
            queue_seconds=self._scheduled - self._received,
            prefill_seconds=time.monotonic() - self._scheduled,
            forward_seconds=self._forward_s,
            cached_tokens=self.sequence.num_cached,
            prompt_logprobs=map(prompt_logprob_to_pb, drawn[0].prompt_logprobs),
        )
        self.outbox.put_nowait(pb.PrefillResponse(first_tokens=message))
        self.is_computed.set()

    def give_up(self) -> bool:
        """The receiver has had no room so far, and the blocks are needed: it computes itself."""
        if self.grant is not None or self.has_given_up:
            return False
        self.has_given_up = True
        self.outbox.put_nowait(Overloaded("This prompt waited for its receiver's blocks."))
        return True

    def failed(self, error: Exception) -> None:
        self.outbox.put_nowait(InternalError())
