"""The receiver's end: blocks lent to remote writers, until nobody can write into them.

A reservation owns its blocks from `reserve` until either `verify` gives them to the caller,
or the table gives them to `on_release`, exactly once: after the caller's scope has ended and
the writer closed, died or was revoked. In between they are quarantined. All on the event loop.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from types import TracebackType
from typing import Self

from cluster.errors import DigestMismatch, TransferFailed
from cluster.lateness import AttentiveClock
from cluster.types import Direction, Grant, Incarnation, KvLayout, SpanDigest, Written
from kv_transfer.geometry import BlockTable, Share, within_blocks
from kv_transfer.pool import KvPool
from kv_transfer.stats import PairStats, Reason, TransferCounters
from kv_transfer.timers import LoopTimers, TimerHandle, Timers
from kv_transfer.transfer import End, Event, RemoteProtocolError, State, Transfer
from kv_transfer.transport import Peer


class Reservation:
    """One epoch. Use as `with`: leaving it without `verify` abandons it, and waits for nobody."""

    def __init__(
        self,
        table: "ReservationTable",
        grant: Grant,
        peer: Peer,
        share: Share,
        attention: AttentiveClock,
    ) -> None:
        block_size = table.layout.block_size
        self.grant = grant
        self.share = share  # what of the granted tokens will be written
        self.peer = peer
        # Blocks before `start` are only read, those after `stop` are not written remotely.
        self.blocks = grant.blocks[grant.start // block_size : -(-grant.stop // block_size)]
        self.forget_peer: Callable[[], None] = lambda: None
        self.lease_timer: TimerHandle | None = None
        self.is_let_go = False
        self.has_lapsed = False
        self.has_renewed = False  # its writer was heard of
        self.transfer = Transfer(End.RECEIVER)
        self.attention = attention  # its lease runs while we are there to hear the writer
        self.failure: str | None = None
        self._table = table
        self._lost = asyncio.Event()

    @property
    def epoch(self) -> int:
        return self.grant.epoch

    @property
    def state(self) -> State:
        return self.transfer.state

    @property
    def whole_from(self) -> int:
        """Tokens before this one lack, in layers with a window, what no later token sees."""
        return self.share.whole_from(self.grant.start, self.grant.stop)

    @property
    def is_lossless(self) -> bool:
        """Otherwise what was written may serve its own request, and no other."""
        return self.share.is_lossless

    def renew(self) -> None:
        """Any message of the writer's stream shows that it still works on this."""
        self.has_renewed = True
        self._table.renew(self)

    def lapse(self) -> None:
        """Its writer gave no sign of life for a lease, whatever the lease's timer says."""
        self._table.lapse(self)

    def writer_closed(self, reason: str) -> None:
        """The writer says that it gave up: nothing of this epoch will be written any more."""
        self._table.fail(self, Event.CLOSE, Reason.WRITER_CLOSED, f"the writer closed: {reason}")

    async def verify(self, written: Written) -> None:
        """Checks count and content; afterwards the blocks are the caller's, filled.

        Raises TransferFailed when it is short, late or malformed, DigestMismatch when the
        bytes are not those that were sent.
        """
        await self._table.verify(self, written)

    async def lost(self) -> str:
        """Returns why, as soon as there is nothing left to wait for: lapse, death, close."""
        await self._lost.wait()
        return self.failure or ""

    def lose(self, failure: str) -> None:
        self.failure = self.failure or failure
        self._lost.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._table.let_go(self)


class ReservationTable:
    def __init__(
        self,
        pool: KvPool,
        layout: KvLayout,
        *,
        on_release: Callable[[tuple[int, ...]], None],
        on_abandoned: Callable[[Reservation], None] | None = None,
        check_content: bool = True,
        stats: PairStats | None = None,
        timers: Timers | None = None,
    ) -> None:
        """`on_abandoned` hears of reservations that wait for their writer's close."""
        self.layout = layout
        self._stats = stats or PairStats()
        self._incarnation = pool.incarnation
        self._on_release = on_release
        self._on_abandoned = on_abandoned
        self._check_content = check_content
        self._timers = timers or LoopTimers(asyncio.get_running_loop())
        self._last_epoch = 0
        self._live: dict[int, Reservation] = {}  # by epoch, in order
        self._emptied = asyncio.Event()
        self._emptied.set()
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kv-verify")
        self._digest = pool.digester()  # of the reader's thread

    @property
    def num_held_blocks(self) -> int:
        """Blocks that the table owns, quarantined ones among them."""
        return sum(len(reservation.blocks) for reservation in self._live.values())

    @property
    def num_quarantined_blocks(self) -> int:
        """Blocks that nobody waits for and nobody may use."""
        return self.quarantined.total()

    @property
    def quarantined(self) -> Counter[Peer]:
        """The same by who may still write into them."""
        blocks: Counter[Peer] = Counter()
        for one in self._live.values():
            if one.state is State.ABANDONED:
                blocks[one.peer] += len(one.blocks)
        return blocks

    @property
    def counters(self) -> TransferCounters:
        """Sums the counters of all writers."""
        return self._stats.total(Direction.RECEIVED)

    def share_of(self, source: KvLayout, wire_dtype: str | None = None) -> Share:
        """Says what moves from a pool of this layout into ours, if it may be narrowed to
        `wire_dtype` on its way.

        Raises TransferFailed where nothing can.
        """
        try:
            return Share(source=source, destination=self.layout, wire_dtype=wire_dtype)
        except ValueError as error:
            raise TransferFailed(str(error)) from error

    def reserve(
        self,
        blocks: Sequence[int],
        start: int,
        stop: int,
        *,
        lease_s: float,
        peer: Peer,
        share: Share | None = None,
    ) -> Reservation:
        """Lends what holds tokens [start, stop) of a block table to a writer; `share` is what
        moves between its pool and ours (None: the pools are alike)."""
        BlockTable(self.layout, blocks).check_range(start, stop)
        share = share or self.share_of(self.layout)
        self._last_epoch += 1
        grant = Grant(
            incarnation=self._incarnation,
            epoch=self._last_epoch,
            start=start,
            stop=stop,
            blocks=tuple(blocks),
            lease_s=lease_s,
            transport=peer.transport,
            wire_dtype=share.wire_dtype,
        )
        reservation = Reservation(self, grant, peer, share, AttentiveClock(self._timers.now))
        reservation.transfer.grant(lease_s, reservation.attention.now())
        self._live[grant.epoch] = reservation
        self._emptied.clear()
        peer.admit(grant.epoch, within_blocks(self.layout, reservation.blocks, share.heads))
        reservation.forget_peer = peer.life.on_end(lambda: self._peer_died(reservation))
        self._watch_lease(reservation)
        return reservation

    def renew(self, reservation: Reservation) -> None:
        reservation.transfer.renew(reservation.attention.now())

    def fail(self, reservation: Reservation, event: Event, reason: Reason, text: str) -> None:
        """Applies an event that ends the waiting."""
        transfer = reservation.transfer
        if reservation.epoch not in self._live:
            self._stats.received(reservation.peer).num_fenced += 1
            return
        phase = transfer.state
        transfer.apply(event)
        if phase is State.GRANTED or (phase is State.WRITTEN and transfer.state is State.CLOSED):
            self._stats.received(reservation.peer).failures[phase, reason] += 1
            reservation.lose(text)
        if transfer.state is State.ABANDONED and reservation.peer.revoke(reservation.epoch):
            transfer.apply(Event.REVOKED)
        self._release_if_over(reservation)

    def is_held_up_by(self, peer: Incarnation) -> bool:
        """Tells whether blocks are quarantined as this writer stood still, and may write yet."""
        return any(
            one.has_lapsed and one.peer.incarnation == peer and one.state is State.ABANDONED
            for one in self._live.values()
        )

    def stood_still(self, peer: Incarnation) -> None:
        """This writer is given up for being silent or slow: what of it is abandoned by now is
        held up."""
        for one in self._live.values():
            if one.peer.incarnation == peer and one.state is State.ABANDONED:
                one.has_lapsed = True

    def lapse(self, reservation: Reservation) -> None:
        reservation.has_lapsed = True
        self.fail(reservation, Event.STOP, Reason.LAPSED, "its lease lapsed")

    def let_go(self, reservation: Reservation, reason: Reason = Reason.CANCELLED) -> None:
        """The caller's scope ends; what it verified is already its own."""
        if reservation.epoch not in self._live:
            return
        reservation.is_let_go = True
        self.fail(reservation, Event.STOP, reason, "it was cancelled")
        if reservation.state is State.ABANDONED and self._on_abandoned is not None:
            self._on_abandoned(reservation)

    async def verify(self, reservation: Reservation, written: Written) -> None:
        transfer = reservation.transfer
        if written.epoch != reservation.epoch:  # says nothing about our blocks: not a close
            text = f"epoch {written.epoch} was written, not {reservation.epoch}"
            self.fail(reservation, Event.STOP, Reason.PROTOCOL, text)
            raise RemoteProtocolError(f"A hand-over is stopped: {text}.")
        if transfer.apply(Event.WRITTEN) is not State.WRITTEN:
            self.fail(reservation, Event.STOP, Reason.LAPSED, "it came too late")
            raise TransferFailed(f"A hand-over failed: {reservation.failure}.")
        reservation.peer.revoke(reservation.epoch)  # nothing lands between the check and the use
        problem = _shortage(reservation, written, self._check_content)
        if problem:
            self.fail(reservation, Event.REJECT, Reason.SHORT, problem)
            raise TransferFailed(f"A hand-over is refused: {problem}.")
        begin = time.perf_counter()
        if self._check_content:
            await self._verify_content(reservation, written.digests)
        if transfer.state is not State.WRITTEN:
            raise TransferFailed(f"A hand-over failed: {reservation.failure}.")
        transfer.apply(Event.VERIFY)
        self._forget(reservation)
        self._stats.received(reservation.peer).transferred(
            num_bytes=written.num_bytes,
            write_s=written.write_s,
            verify_s=time.perf_counter() - begin,
        )

    async def empty(self) -> None:
        """Returns when nothing is lent, nor quarantined."""
        await self._emptied.wait()

    def check(self) -> None:
        """Every head of a block is lent at most once, and only what is still open is held."""
        lent: dict[tuple[int, int], int] = {}
        for epoch, reservation in self._live.items():
            assert epoch == reservation.epoch <= self._last_epoch
            assert reservation.state is not State.VERIFIED
            assert not (reservation.is_let_go and reservation.transfer.is_over)
            for part in product(reservation.blocks, reservation.share.heads):
                assert part not in lent, f"block, head {part}: epochs {lent[part]} and {epoch}"
                lent[part] = epoch
        assert self.num_held_blocks >= self.num_quarantined_blocks

    def close(self) -> None:
        for reservation in self._live.values():
            self._unwatch(reservation)
        self._reader.shutdown(wait=True, cancel_futures=True)

    async def _verify_content(
        self, reservation: Reservation, digests: Sequence[SpanDigest]
    ) -> None:
        loop = asyncio.get_running_loop()
        wrong = await loop.run_in_executor(self._reader, self._first_wrong, reservation, digests)
        if wrong is not None and reservation.state is State.WRITTEN:
            problem = f"layer {wrong.layer}, tokens [{wrong.start}, {wrong.stop}) differ"
            self.fail(reservation, Event.REJECT, Reason.DIGEST, problem)
            raise DigestMismatch(f"A hand-over's bytes are not those that were sent: {problem}.")

    def _first_wrong(
        self, reservation: Reservation, digests: Sequence[SpanDigest]
    ) -> SpanDigest | None:
        """Runs on the reader's thread."""
        table = BlockTable(self.layout, reservation.grant.blocks)
        for one in digests:
            here = table.spans(one.layer, one.start, one.stop, reservation.share.heads)
            if self._digest(here) != one.digest:
                return one
        return None

    def _peer_died(self, reservation: Reservation) -> None:
        self.fail(reservation, Event.PEER_DIED, Reason.WRITER_DIED, "the writer died")

    def _watch_lease(self, reservation: Reservation) -> None:
        transfer = reservation.transfer
        if not transfer.may_write:
            return
        left_s = transfer.deadline - reservation.attention.now()
        if left_s <= 0:
            self.lapse(reservation)
        else:
            reservation.lease_timer = self._timers.call_later(
                reservation.attention.pause_s(left_s), lambda: self._watch_lease(reservation)
            )

    def _release_if_over(self, reservation: Reservation) -> None:
        if reservation.is_let_go and reservation.transfer.is_over:
            self._forget(reservation)
            self._on_release(reservation.blocks)

    def _forget(self, reservation: Reservation) -> None:
        del self._live[reservation.epoch]
        if not self._live:
            self._emptied.set()
        reservation.peer.revoke(reservation.epoch)  # nothing that is late lands any more
        self._unwatch(reservation)

    def _unwatch(self, reservation: Reservation) -> None:
        reservation.forget_peer()
        if reservation.lease_timer is not None:
            reservation.lease_timer.cancel()


def _shortage(reservation: Reservation, written: Written, check_content: bool) -> str:
    """Names what is missing, as a phrase; empty when nothing is."""
    grant, share = reservation.grant, reservation.share
    if (written.start, written.stop) != (grant.start, grant.stop):
        return (
            f"tokens [{written.start}, {written.stop}) came, "
            f"[{grant.start}, {grant.stop}) were granted"
        )
    num_bytes = share.num_bytes(grant.start, grant.stop)
    if written.num_bytes != num_bytes:
        return f"{written.num_bytes} of {num_bytes} bytes came"
    return _gap(share, grant, written.digests) if check_content else ""


def _gap(share: Share, grant: Grant, digests: Sequence[SpanDigest]) -> str:
    """Digests must cover each layer's range once, without gap or overlap."""
    layers = range(share.source.num_layers)
    reached = [share.first(layer, grant.start, grant.stop) for layer in layers]
    for one in sorted(digests, key=lambda one: (one.layer, one.start)):
        if one.layer not in layers or one.start != reached[one.layer]:
            return f"the digest of layer {one.layer}, token {one.start} is out of place"
        if not one.start < one.stop <= grant.stop:
            return f"the digest of layer {one.layer} ends at token {one.stop}"
        reached[one.layer] = one.stop
    short = [layer for layer, stop in enumerate(reached) if stop != grant.stop]
    return f"layer {short[0]} has digests only to token {reached[short[0]]}" if short else ""
