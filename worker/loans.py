"""Drives both ends of loans over calls of `Worker.Lend`: what `kv_transfer/loan.py` says when."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final, NamedTuple

from cluster.channel import Exchange
from cluster.errors import PenstockError, TransferFailed
from cluster.lateness import AttentiveClock
from cluster.rpc import Call
from cluster.types import BlockId, WorkerAddress, Written
from kv_transfer.geometry import Share
from kv_transfer.incoming import Reservation, ReservationTable
from kv_transfer.loan import Borrower, Lender, Phase, Silent, Word
from kv_transfer.outgoing import OutgoingTransfer
from kv_transfer.stats import Reason
from kv_transfer.transfer import RemoteProtocolError
from kv_transfer.transport import Peer
from penstock.v1 import worker_pb2 as pb
from worker.peers import Peers
from worker.rests import Rests
from worker.transfer_codec import grant_from_pb, grant_to_pb, written_from_pb, written_to_pb
from worker.writes import Writes

_WORDS: Final = {
    "found": Word.FOUND,
    "grant": Word.GRANT,
    "first_tokens": Word.TOKENS,
    "written": Word.WRITTEN,
    "renew": Word.ALIVE,
    "renewed": Word.ALIVE,
}

# Told how many tokens may be granted: reserves blocks, and grants them at once or later. False:
# nothing is wanted of it.
FoundTokens = Callable[["Borrowing", int], bool]
# False: the request has ended with them.
TakeFirstTokens = Callable[[pb.FirstTokens], bool]


class Filled(NamedTuple):
    """Holds what was borrowed: the reserved blocks hold it, verified."""

    reservation: Reservation
    written: Written
    connect_s: float  # of reaching the lender's pool, if that was to be done
    verify_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Loans:
    """Holds what one worker borrows and lends with."""

    peers: Peers
    table: ReservationTable
    writes: Writes
    rests: Rests
    clock: AttentiveClock
    lease_s: float

    async def borrow(
        self,
        lender: WorkerAddress,
        start: pb.LendStart,
        found: FoundTokens,
        first_tokens: TakeFirstTokens | None = None,
        *,
        narrows: bool = True,
        by: str | None = None,
        grant_s: float = inf,
    ) -> Filled | None:
        """Returns when the granted blocks are filled; None when nothing more is wanted.

        `narrows`: KV may change its dtype on the way; `by`: no other transport will do.
        Raises PenstockError when it fails: before anything is asked for, where no transport can
        bring it. What a lender may write yet is the table's then.
        """
        begin = time.monotonic()
        me = self.peers.me
        wire_dtype = me.fingerprint.wire_dtype if narrows else None
        share = self.table.share_of(lender.fingerprint.layout, wire_dtype)
        peer = await self.peers.connect(lender, by=by)
        connect_s = time.monotonic() - begin
        start.borrower.worker_id, start.borrower.incarnation = me.worker_id, me.incarnation
        end = Borrower(
            self.clock.now(),
            lease_s=self.lease_s,
            grant_s=grant_s,
            wants_tokens=first_tokens is not None,
        )
        borrowing = Borrowing(self, end, peer, share)
        reason = Reason.CANCELLED
        try:
            call = self.peers.channel(lender).exchange("penstock.v1.Worker", "Lend", timeout_s=None)
            written = await borrowing.run(call, start, found, first_tokens)
            if written is None or borrowing.reservation is None:
                return None
            begin = time.monotonic()
            # Nothing is awaited after it: what is verified is the caller's, who must hear of it.
            await borrowing.reservation.verify(written)
            verify_s = time.monotonic() - begin
        except Silent:
            self.rests.begin(lender)
            if borrowing.reservation is not None:
                borrowing.reservation.lapse()
            raise
        except PenstockError:
            reason = Reason.WRITER_CLOSED
            raise
        finally:
            if borrowing.reservation is not None:
                self.table.let_go(borrowing.reservation, reason)
        return Filled(borrowing.reservation, written, connect_s, verify_s)

    def lend(self, *, owes_tokens: bool = False) -> "Lending":
        """A loan that was asked for, to be served."""
        end = Lender(self.clock.now(), lease_s=self.lease_s, owes_tokens=owes_tokens)
        return Lending(self, end)


@dataclass(slots=True, eq=False)
class Borrowing:
    """One loan at its borrower."""

    loans: Loans
    end: Borrower
    peer: Peer  # the lender's pool
    share: Share  # what moves from there into ours
    reservation: Reservation | None = None
    _outbox: asyncio.Queue[pb.LendRequest] = field(default_factory=asyncio.Queue)

    def grant(self, blocks: Sequence[BlockId], start: int, stop: int) -> Reservation:
        """Has tokens [start, stop) written into blocks of this table."""
        self.end.grants(self.loans.clock.now())
        self.reservation = self.loans.table.reserve(
            blocks, start, stop, lease_s=self.loans.lease_s, peer=self.peer, share=self.share
        )
        self._outbox.put_nowait(pb.LendRequest(grant=grant_to_pb(self.reservation.grant)))
        return self.reservation

    async def run(
        self,
        call: Exchange,
        start: pb.LendStart,
        found: FoundTokens,
        first_tokens: TakeFirstTokens | None,
    ) -> Written | None:
        try:
            async with call, asyncio.TaskGroup() as group:
                others = [group.create_task(self._watch())]  # who has stopped takes in no more
                await call.send(pb.LendRequest(start=start))
                others.append(group.create_task(self._tell(call)))
                written = await self._listen(call, found, first_tokens)
                for task in others:
                    task.cancel()
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return written

    async def _listen(
        self, call: Exchange, found: FoundTokens, first_tokens: TakeFirstTokens | None
    ) -> Written | None:
        while (message := await call.receive()) is not None:
            event = message.WhichOneof("event")
            self.end.heard(_word(event), self.loans.clock.now())
            if self.reservation is not None:
                self.reservation.renew()
            match event:
                case "found" if not found(self, message.found.num_tokens):
                    return None
                case "first_tokens" if first_tokens and not first_tokens(message.first_tokens):
                    return None
                case "written":
                    return written_from_pb(message.written)
        raise TransferFailed("The lender ended a loan half-way.")

    async def _tell(self, call: Exchange) -> None:
        """A call that ended takes no more: its last words, or their lack, are for who listens."""
        with contextlib.suppress(PenstockError):
            while True:
                await call.send(await self._outbox.get())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.end.pause_s(self.loans.clock.now()))
            if self.end.tick(self.loans.clock.now()) and self._outbox.empty():
                epoch = 0 if self.reservation is None else self.reservation.epoch
                self._outbox.put_nowait(pb.LendRequest(renew=pb.Renew(epoch=epoch)))


@dataclass(slots=True, eq=False)
class Lending:
    """One loan at its lender. Its blocks stay as they are until its transfer is closed, which the
    call does not wait for."""

    loans: Loans
    end: Lender
    transfer: OutgoingTransfer | None = None
    _is_told: asyncio.Event = field(default_factory=asyncio.Event)  # all but that it is written
    _outbox: asyncio.Queue[pb.LendResponse | Exception] = field(default_factory=asyncio.Queue)

    @property
    def is_granted(self) -> bool:
        return self.end.phase in (Phase.GRANTED, Phase.WRITTEN)

    def found(self, transfer: OutgoingTransfer, num_tokens: int) -> None:
        """Says that so much is here or being computed; `transfer` writes it once granted."""
        self.transfer = transfer
        self._say(Word.FOUND, pb.LendResponse(found=pb.Found(num_tokens=num_tokens)))
        if not self.end.owes_tokens:
            self._is_told.set()

    def first_tokens(self, message: pb.FirstTokens) -> None:
        """They leave at once: they do not wait for the KV."""
        self._say(Word.TOKENS, pb.LendResponse(first_tokens=message))
        self._is_told.set()

    def fail(self, error: Exception) -> None:
        self._outbox.put_nowait(error)

    async def serve(
        self, call: Call, borrower: WorkerAddress, *, is_making_progress: Callable[[], bool]
    ) -> None:
        """Returns when all is written. Raises PenstockError when it fails, and when the borrower
        says nothing."""
        try:
            async with asyncio.TaskGroup() as group:
                others = [
                    group.create_task(self._listen(call, borrower)),
                    group.create_task(self._watch(is_making_progress)),
                    group.create_task(self._land()),
                ]
                await self._tell(call)
                for task in others:
                    task.cancel()
        finally:
            if self.transfer is not None:
                self.transfer.stop("the call ended")

    def _say(self, word: Word, message: pb.LendResponse) -> None:
        self.end.says(word, self.loans.clock.now())
        self._outbox.put_nowait(message)

    async def _tell(self, call: Call) -> None:
        while True:
            message = await self._outbox.get()
            if isinstance(message, Exception):
                raise message
            call.tokens_emitted += len(message.first_tokens.tokens)
            await call.send(message)
            if message.HasField("written"):
                return

    async def _listen(self, call: Call, borrower: WorkerAddress) -> None:
        while (message := await call.receive()) is not None:
            event = message.WhichOneof("event")
            counts = self.end.heard(_word(event), self.loans.clock.now())
            if self.transfer is None or not counts:
                continue
            match event:
                case "grant":
                    await self.loans.writes.grant(
                        self.transfer, grant_from_pb(message.grant), borrower
                    )
                case "renew":
                    self.transfer.renew(message.renew.epoch)

    async def _watch(self, is_making_progress: Callable[[], bool]) -> None:
        while True:
            await asyncio.sleep(self.end.pause_s(self.loans.clock.now()))
            moves = is_making_progress() and not self._stands_still()
            if self.end.tick(self.loans.clock.now(), moves=moves) and self._outbox.empty():
                self._outbox.put_nowait(pb.LendResponse(renewed=pb.Renewed()))

    def _stands_still(self) -> bool:
        """Tells whether it stands still: then its borrower hears nothing, and computes."""
        transfer = self.transfer
        return transfer is not None and self.loans.writes.stand_still(transfer, self.loans.lease_s)

    async def _land(self) -> None:
        await self._is_told.wait()
        assert self.transfer is not None, "it was found before it was told of"
        try:
            written = await self.transfer.landed()
        except PenstockError as error:
            self.fail(error)
        else:
            self._say(Word.WRITTEN, pb.LendResponse(written=written_to_pb(written)))


def _word(event: str | None) -> Word:
    if (word := _WORDS.get(event or "")) is None:
        raise RemoteProtocolError(f"A loan has no '{event}' at this point.")
    return word
