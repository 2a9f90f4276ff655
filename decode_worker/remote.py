"""Prompts that a prefill worker computes for us: the borrowing end of a hand-over.

The first token goes to the answer the moment it arrives; the sequence joins the running batch
when its last layer is here and verified. If anything fails the prompt is computed here, and
what has been sent is never drawn again. Leaving the scope never waits for the peer.
"""

import logging
import time
from dataclasses import dataclass, field
from functools import partial

from cluster.codec import prompt_logprob_from_pb, sampled_from_pb
from cluster.errors import PenstockError, TransferFailed
from cluster.types import SampledToken, WorkerId
from decode_worker.answer import OwnedAnswer
from decode_worker.timeline import Moment
from engine.sequence import Sequence
from kv_transfer.incoming import Reservation
from kv_transfer.transfer import State
from penstock.v1 import worker_pb2 as pb
from worker.compute import DecodeCompute
from worker.loans import Borrowing, Filled
from worker.transfers import Transfers

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Prompt:
    """One that is computed elsewhere: what has arrived of it so far."""

    request: pb.DecodeRequest
    answer: OwnedAnswer
    sequence: Sequence
    reservation: Reservation | None = None
    first_tokens: list[SampledToken] = field(default_factory=list)


class RemotePrompts:
    """Owns what is on its way from prefill workers."""

    def __init__(
        self,
        compute: DecodeCompute,
        transfers: Transfers,
        *,
        grant_s: float,
    ) -> None:
        self._compute = compute
        self._loans = transfers.loans
        self._rests = transfers.rests
        self._keeper = transfers.keeper
        self._link_costs = transfers.link_costs
        self._grant_s = grant_s
        self.num_recomputes = 0
        self.num_received = 0

    async def receive(self, answer: OwnedAnswer, request: pb.DecodeRequest) -> None:
        """Returns when the sequences run here, whichever worker computed the prompt."""
        sequence = Sequence(
            answer.request,
            num_choices=answer.request.params.num_choices,
            owner=answer,
            arrived_at=answer.timeline.arrived_at,
        )
        prompt = _Prompt(request=request, answer=answer, sequence=sequence)
        self._compute.expect(sequence)
        try:
            filled = await self._borrow(prompt)
        except PenstockError as error:
            self._leave(prompt)
            self._recompute(prompt, error)
        except BaseException:
            self._leave(prompt)
            raise
        else:
            if filled is None:  # the request ended with its first tokens
                self._leave(prompt)
            else:
                self._join(prompt, filled)
            self.num_received += 1

    def counters(self) -> dict[str, float]:
        """Gives what the load report says of hand-overs, beside what it says of all transfers."""
        return {
            "hand_overs_received": self.num_received,
            "hand_over_recomputes": self.num_recomputes,
        }

    async def _borrow(self, prompt: _Prompt) -> Filled | None:
        named = prompt.request.prefill
        worker = self._loans.peers.named(named.worker_id, named.incarnation)
        self._keeper.check(worker)
        self._rests.check(worker)
        start = pb.LendStart(prompt=prompt.request)
        start.prompt.ClearField("prefill")
        start.prompt.due_seconds = prompt.sequence.due_at - time.monotonic()

        def found(borrowing: Borrowing, num_tokens: int) -> bool:
            """The prompt is being computed: asks for blocks, now and not before."""
            self._compute.claim(prompt.sequence, partial(self._grant, prompt, borrowing))
            return True

        def first_tokens(message: pb.FirstTokens) -> bool:
            return self._take_first(prompt, message)

        return await self._loans.borrow(worker, start, found, first_tokens, grant_s=self._grant_s)

    # -- its steps ---------------------------------------------------------------------------

    def _grant(self, prompt: _Prompt, borrowing: Borrowing) -> None:
        """Its blocks are in the sequence's table."""
        sequence = prompt.sequence
        prompt.answer.timeline.stamp(Moment.GRANTED)
        prompt.reservation = borrowing.grant(
            sequence.block_table, sequence.num_computed, sequence.num_tokens
        )

    def _take_first(self, prompt: _Prompt, message: pb.FirstTokens) -> bool:
        """Takes them to the client at once. False when the request ends with them."""
        answer, timeline = prompt.answer, prompt.answer.timeline
        if len(message.tokens) != len(answer.choices):
            raise TransferFailed("The prefill worker drew a wrong number of first tokens.")
        timeline.queue_s = message.queue_seconds
        timeline.prefill_s = message.prefill_seconds
        timeline.forward_s = message.forward_seconds
        logprobs = tuple(map(prompt_logprob_from_pb, message.prompt_logprobs))
        answer.accepted.prefill_worker = prompt.request.prefill.worker_id
        answer.accept(message.cached_tokens, logprobs)
        prompt.first_tokens = [sampled_from_pb(token) for token in message.tokens]
        for choice, token in enumerate(prompt.first_tokens):
            answer.push(choice, token)
        return not answer.is_finished

    def _join(self, prompt: _Prompt, filled: Filled) -> None:
        """Its KV is here: runs it."""
        answer, written = prompt.answer, filled.written
        self._link_costs.handed_over(
            WorkerId(prompt.request.prefill.worker_id),
            written.num_bytes,
            written.write_s + filled.verify_s,
        )
        prompt.sequence.whole_from = filled.reservation.whole_from
        prompt.sequence.is_exact = filled.reservation.is_lossless
        answer.timeline.stamp(Moment.VERIFIED)
        answer.timeline.transferred_bytes = written.num_bytes
        sequences = self._begun(prompt)
        self._compute.join(sequences[0], sequences[1:])
        answer.timeline.stamp(Moment.READY)
        for sequence in sequences:
            if answer.choices[sequence.choice].finish is None:
                answer.sequences.add(sequence)
            else:
                self._compute.drop(sequence)

    def _leave(self, prompt: _Prompt) -> None:
        """Ends the claim, if it has not joined. What may still be written is the table's, the
        rest is free."""
        unwritten = self._compute.forgo(prompt.sequence)
        num_lent = 0
        if (reservation := prompt.reservation) and reservation.state is not State.VERIFIED:
            num_lent = len(reservation.blocks)
        self._compute.release(unwritten[num_lent:])

    def _recompute(self, prompt: _Prompt, error: Exception) -> None:
        """Computes the prompt here, and goes on after what has been sent."""
        logger.warning(
            "request %s: hand-over from %s failed (%s): computing here",
            prompt.answer.request.request_id,
            prompt.request.prefill.worker_id,
            str(error) or type(error).__name__,
        )
        self.num_recomputes += 1
        answer = prompt.answer
        answer.timeline.num_recomputes += 1
        if not prompt.first_tokens:
            answer.timeline.queue_s = answer.timeline.prefill_s = None
        for sequence in self._begun(prompt) if prompt.first_tokens else [prompt.sequence]:
            if answer.choices[sequence.choice].finish is None:
                answer.sequences.add(sequence)
                self._compute.submit(sequence)

    def _begun(self, prompt: _Prompt) -> list[Sequence]:
        """One sequence a choice, each with its first token; only the first has blocks."""
        first = prompt.sequence
        first.num_choices, first.has_begun = 1, True
        forks = [first.fork(choice) for choice in range(1, len(prompt.first_tokens))]
        for sequence, token in zip([first, *forks], prompt.first_tokens, strict=True):
            sequence.output_ids.append(token.token_id)
        return [first, *forks]
