"""Prompts that a prefill worker computes for us: the receiving end of a hand-over.

The first token goes to the answer the moment it arrives; the sequence joins the running batch
when its last layer is here and verified. If anything fails the prompt is computed here, and
what has been sent is never drawn again. Leaving the scope never waits for the peer.
"""

import asyncio
import logging
import time
from dataclasses import dataclass, field, replace

from cluster.channel import Exchange
from cluster.codec import prefill_start_to_pb, prompt_logprob_from_pb, sampled_from_pb
from cluster.errors import PenstockError, TransferFailed, WorkerLost
from cluster.lateness import Patience
from cluster.timeline import Moment
from cluster.transfer_codec import grant_to_pb, written_from_pb
from cluster.types import SampledToken, WorkerAddress
from decode_worker.answer import Answer
from decode_worker.scheduler import DecodeScheduler
from engine.sequence import Sequence
from kv_transfer.counters import Reason
from kv_transfer.incoming import Reservation
from kv_transfer.share import Share
from kv_transfer.transfer import State
from kv_transfer.transport import Peer
from penstock.v1 import worker_pb2 as pb
from worker.transfers import Transfers

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Receiving:
    """One hand-over: what has arrived of it so far."""

    answer: Answer
    sequence: Sequence
    worker: WorkerAddress
    peer: Peer | None = None  # its pool
    share: Share | None = None  # what moves from there into ours
    outbox: asyncio.Queue[pb.PrefillRequest] = field(default_factory=asyncio.Queue)
    reservation: Reservation | None = None
    claimed: float | None = None  # by our attention
    first_tokens: list[SampledToken] = field(default_factory=list)


class HandOvers:
    """Owns what is on its way from prefill workers."""

    def __init__(
        self,
        me: WorkerAddress,
        scheduler: DecodeScheduler,
        transfers: Transfers,
        *,
        lease_s: float,
        grant_s: float,
    ) -> None:
        self._me = me
        self._scheduler = scheduler
        self._attention = transfers.attention
        self._peers = transfers.peers
        self._table = transfers.table
        self._rests = transfers.rests
        self._keeper = transfers.keeper
        self._link_costs = transfers.link_costs
        self._lease_s = lease_s
        self._grant_s = grant_s
        self.num_recomputes = 0
        self.num_received = 0

    async def receive(
        self, answer: Answer, worker: WorkerAddress, request: pb.DecodeRequest
    ) -> None:
        """Returns when the sequences run here, whichever worker computed the prompt."""
        num_choices = answer.request.params.num_choices
        sequence = Sequence(
            answer.request,
            num_choices=num_choices,
            owner=answer,
            received_at=answer.timeline.received_at,
        )
        left_s = sequence.due_at - time.monotonic()
        start = prefill_start_to_pb(
            replace(answer.request, due_s=left_s),
            tenant=request.tenant,
            cache_scope=request.cache_scope,
            decode=self._me,
        )
        if request.HasField("source"):  # whoever computes the prompt fetches
            start.source.CopyFrom(request.source)
            start.source_tokens = request.source_tokens
        receiving = _Receiving(answer=answer, sequence=sequence, worker=worker)
        self._scheduler.expect(sequence)
        try:
            # Before it computes anything: what no transport can bring is not asked for.
            receiving.share = self._table.share_of(
                worker.fingerprint.layout, self._me.fingerprint.wire_dtype
            )
            self._keeper.check(worker)
            self._rests.check(worker)
            receiving.peer = await self._peers.connect(worker)
            await self._exchange(receiving, start)
            self.num_received += 1
        except* (PenstockError, TimeoutError) as group:
            self._recompute(receiving, group.exceptions[0])
        finally:
            self._scheduler.forgo(sequence)  # nothing to do once the call has begun

    def counters(self) -> dict[str, float]:
        """What the load report says of hand-overs, beside what it says of all transfers."""
        return {
            "hand_overs_received": self.num_received,
            "hand_over_recomputes": self.num_recomputes,
        }

    # -- the call --------------------------------------------------------------------------

    async def _exchange(self, receiving: _Receiving, start: pb.PrefillStart) -> None:
        channel = self._peers.channel(receiving.worker)
        call = channel.exchange("penstock.v1.Prefill", "Prefill", timeout_s=None)
        reason = Reason.CANCELLED
        try:
            async with call, asyncio.TaskGroup() as group:
                await call.send(pb.PrefillRequest(start=start))
                telling = group.create_task(self._tell(call, receiving))
                await self._listen(call, receiving)
                telling.cancel()
        except* PenstockError:
            reason = Reason.WRITER_CLOSED
            raise
        finally:
            self._leave(receiving, reason)

    async def _listen(self, call: Exchange, receiving: _Receiving) -> None:
        """Takes messages until the sequences run, or the answer needs no more tokens."""
        while True:
            message = await self._hear(call, receiving)
            if message is None:
                raise TransferFailed(f"{receiving.worker.worker_id} ended a hand-over half-way.")
            self._renew(receiving)
            match message.WhichOneof("event"):
                case "scheduled":
                    self._claim(receiving)
                case "first_tokens" if not self._take_first(receiving, message.first_tokens):
                    return
                case "written":
                    await self._finish(receiving, message.written)
                    return

    async def _hear(self, call: Exchange, receiving: _Receiving) -> pb.PrefillResponse | None:
        """Who writes but says nothing for a lease has stopped, or its writes stand still."""
        try:
            async with Patience(self._lease_s):
                message: pb.PrefillResponse | None = await call.receive()
        except TimeoutError:
            self._rests.begin(receiving.worker)
            if receiving.reservation is not None:
                receiving.reservation.lapse()
            raise TransferFailed(
                f"{receiving.worker.worker_id} gave no sign of progress for {self._lease_s:g} s."
            ) from None
        return message

    def _renew(self, receiving: _Receiving) -> None:
        """Each message shows that the writer lives. A claim without blocks has an end, too."""
        if receiving.reservation is not None:
            receiving.reservation.renew()
        elif receiving.claimed is not None:
            waited_s = self._attention.now() - receiving.claimed
            if waited_s > self._grant_s:
                raise TransferFailed(f"No blocks were free for {waited_s:.1f} s.")

    async def _tell(self, call: Exchange, receiving: _Receiving) -> None:
        """Sends the grant, and signs of life while the prefill worker may write. A call that
        ended takes no more: its last words, or their lack, are for `_listen`."""
        while True:
            try:
                async with asyncio.timeout(self._lease_s / 3):
                    message = await receiving.outbox.get()
            except TimeoutError:
                if (reservation := receiving.reservation) is None:
                    continue
                message = pb.PrefillRequest(renew=pb.Renew(epoch=reservation.epoch))
            try:
                await call.send(message)
            except WorkerLost:
                return

    # -- its steps ---------------------------------------------------------------------------

    def _claim(self, receiving: _Receiving) -> None:
        """The prompt is being computed: asks for blocks, now and not before."""
        sequence, peer = receiving.sequence, receiving.peer
        assert peer is not None
        receiving.claimed = self._attention.now()

        def granted() -> None:
            receiving.answer.timeline.stamp(Moment.GRANTED)
            reservation = self._table.reserve(
                sequence.block_table,
                sequence.num_computed,
                sequence.num_tokens,
                lease_s=self._lease_s,
                peer=peer,
                share=receiving.share,
            )
            receiving.reservation = reservation
            message = pb.PrefillRequest(grant=grant_to_pb(reservation.grant))
            receiving.outbox.put_nowait(message)

        self._scheduler.claim(sequence, granted)

    def _take_first(self, receiving: _Receiving, message: pb.FirstTokens) -> bool:
        """To the client at once. False when the request ends with them."""
        answer, timeline = receiving.answer, receiving.answer.timeline
        if len(message.tokens) != len(answer.choices):
            raise TransferFailed("The prefill worker drew a wrong number of first tokens.")
        timeline.queue_s = message.queue_seconds
        timeline.prefill_s = message.prefill_seconds
        timeline.forward_s = message.forward_seconds
        logprobs = tuple(map(prompt_logprob_from_pb, message.prompt_logprobs))
        answer.accepted.prefill_worker = receiving.worker.worker_id
        answer.accept(message.cached_tokens, logprobs)
        receiving.first_tokens = [sampled_from_pb(token) for token in message.tokens]
        for choice, token in enumerate(receiving.first_tokens):
            answer.push(choice, token)
        return not answer.is_finished

    async def _finish(self, receiving: _Receiving, message: pb.Written) -> None:
        reservation, answer = receiving.reservation, receiving.answer
        if reservation is None or not receiving.first_tokens:
            raise TransferFailed("The prefill worker finished what was not granted.")
        written = written_from_pb(message)
        begin = time.monotonic()
        await reservation.verify(written)
        self._link_costs.handed_over(
            receiving.worker.worker_id,
            written.num_bytes,
            written.write_s + time.monotonic() - begin,
        )
        receiving.sequence.whole_from = reservation.whole_from
        receiving.sequence.is_exact = reservation.is_lossless
        answer.timeline.stamp(Moment.VERIFIED)
        answer.timeline.transferred_bytes = written.num_bytes
        sequences = self._begun(receiving)
        self._scheduler.join(sequences[0], sequences[1:])
        answer.timeline.stamp(Moment.READY)
        for sequence in sequences:
            if answer.choices[sequence.choice].finish is None:
                answer.sequences.add(sequence)
            else:
                self._scheduler.drop(sequence)

    def _leave(self, receiving: _Receiving, reason: Reason) -> None:
        """Ends the claim. What a writer may still write goes to the table, the rest is free."""
        unwritten = self._scheduler.forgo(receiving.sequence)
        num_lent = 0
        if (reservation := receiving.reservation) is not None:
            if reservation.state is not State.VERIFIED:
                num_lent = len(reservation.blocks)
            self._table.let_go(reservation, reason)
        self._scheduler.release(unwritten[num_lent:])

    def _recompute(self, receiving: _Receiving, error: Exception) -> None:
        """Computes the prompt here, and goes on after what has been sent."""
        logger.warning(
            "request %s: hand-over from %s failed (%s): computing here",
            receiving.answer.request.request_id,
            receiving.worker.worker_id,
            str(error) or type(error).__name__,
        )
        self.num_recomputes += 1
        answer = receiving.answer
        answer.timeline.num_recomputes += 1
        if not receiving.first_tokens:
            answer.timeline.queue_s = answer.timeline.prefill_s = None
            self._submit(answer, receiving.sequence)
            return
        for sequence in self._begun(receiving):
            if answer.choices[sequence.choice].finish is None:
                self._submit(answer, sequence)

    def _submit(self, answer: Answer, sequence: Sequence) -> None:
        answer.sequences.add(sequence)
        self._scheduler.submit(sequence)

    def _begun(self, receiving: _Receiving) -> list[Sequence]:
        """One sequence a choice, each with its first token; only the first has blocks."""
        first = receiving.sequence
        first.num_choices, first.has_begun = 1, True
        forks = [first.fork(choice) for choice in range(1, len(receiving.first_tokens))]
        for sequence, token in zip([first, *forks], receiving.first_tokens, strict=True):
            sequence.output_ids.append(token.token_id)
        return [first, *forks]
