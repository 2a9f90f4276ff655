"""The writer's end of one hand-over: what is computed and granted is written, at once.

Three threads meet here under one short lock: the torch thread says `computed`, the writer
thread says landed, everything else happens on the event loop.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial

from cluster.errors import TransferFailed
from cluster.types import Grant, KvLayout, SpanDigest, Written
from kv_transfer.geometry import BlockTable, PairedTables
from kv_transfer.stats import PairStats, Reason
from kv_transfer.timers import LoopTimers, TimerHandle, Timers
from kv_transfer.transfer import End, Event, RemoteProtocolError, State, Transfer
from kv_transfer.transport import Landed, Peer, WriteRefused, WriteUnsettled

Write = tuple["Future[Landed]", Callable[["Future[Landed]"], None]]


class OutgoingTransfer:
    """Made when the prompt is scheduled; its blocks must stay as they are until `closed`."""

    def __init__(
        self,
        *,
        layout: KvLayout,
        blocks: Sequence[int],
        num_tokens: int,
        whole_from: int = 0,
        digest: bool = True,
        stats: PairStats | None = None,
        timers: Timers | None = None,
        on_closed: Callable[[], None] | None = None,
    ) -> None:
        """Tokens before `whole_from` may lack KV here in layers with a sliding window."""
        self._loop = asyncio.get_running_loop()
        self._timers = timers or LoopTimers(self._loop)
        self._table = BlockTable(layout, blocks)
        self._num_tokens = num_tokens
        self._whole_from = whole_from
        self._digest = digest
        self._stats = stats or PairStats()
        self._on_closed = on_closed
        self._lock = threading.Lock()
        self._transfer = Transfer(End.WRITER)
        self._computed = [0] * layout.num_layers  # by layer: tokens before this are in our pool
        self._queued = [0] * layout.num_layers  # by layer: tokens before this are being written
        self._pending: set[Future[Landed]] = set()
        self._grant: Grant | None = None
        self._peer: Peer | None = None
        self._tables: PairedTables | None = None
        self._landed: list[tuple[SpanDigest, Landed]] = []
        self._writing_since = 0.0  # of those pending
        self.landed_at = float("-inf")  # when a write ended last
        self._stop_reason = ""
        self._failed: tuple[State, Reason] | None = None  # in which phase, why
        self._num_spans = 0
        self._num_refused = 0
        self._num_unsettled = 0
        self._closed = asyncio.Event()
        self._lease_timer: TimerHandle | None = None
        self._forget_peer: Callable[[], None] = _nothing

    @property
    def epoch(self) -> int | None:
        return None if self._grant is None else self._grant.epoch

    @property
    def is_closed(self) -> bool:
        """Nothing of this hand-over touches either pool any more."""
        return self._closed.is_set()

    @property
    def writing_since(self) -> float:
        """Says since when writes are in flight of which none has ended; infinity without."""
        with self._lock:
            is_writing = bool(self._pending)
            return max(self._writing_since, self.landed_at) if is_writing else float("inf")

    def grant(self, grant: Grant, peer: Peer, layout: KvLayout) -> None:
        """The receiver's blocks arrived; `layout` is its pool's. A late or doubled grant is
        ignored.

        Raises RemoteProtocolError when the grant cannot be true; the hand-over is then stopped.
        """
        with self._lock:
            is_first = self._transfer.state is State.OPEN
            if is_first:
                try:
                    self._tables = self._paired_tables(grant, peer, layout)
                except ValueError as error:
                    self._stop(Event.STOP, Reason.PROTOCOL, f"the grant is wrong: {error}")
                else:
                    self._accept(grant, peer, self._tables)
            writes = self._queue_all() if is_first else []
            self._settle()
        self._hand_out(writes)
        if is_first and self._tables is None:
            raise RemoteProtocolError(f"A hand-over is stopped: {self._stop_reason}")
        if is_first:
            self._forget_peer = peer.life.on_end(self._peer_died)
            self._watch_lease()

    def renew(self, epoch: int) -> None:
        """The receiver still wants it."""
        with self._lock:
            if self._grant is not None and self._grant.epoch == epoch:
                self._transfer.renew(self._timers.now())

    def computed(self, layer: int, stop: int) -> None:
        """K and V of tokens before `stop` of one layer are in our pool. From any thread, cheap."""
        with self._lock:
            self._computed[layer] = max(self._computed[layer], stop)
            writes = self._queue(layer)
        self._hand_out(writes)

    def computed_all(self, stop: int) -> None:
        """The same for all layers at once: what was cached."""
        with self._lock:
            self._computed = [max(before, stop) for before in self._computed]
            writes = self._queue_all()
        self._hand_out(writes)

    def stop(self, reason: str) -> None:
        """Cancel, failure, deadline: no write starts any more; `closed` follows the last one."""
        self._apply(Event.STOP, Reason.CANCELLED, reason)

    async def closed(self) -> None:
        """Returns when both ends' blocks are out of this writer's hands."""
        await self._closed.wait()

    async def landed(self) -> Written:
        """Waits until all of the granted range is in the receiver's pool.

        Raises TransferFailed when the hand-over closed without that.
        """
        await self._closed.wait()
        if self._transfer.state is not State.WRITTEN or self._grant is None:
            raise TransferFailed(f"The hand-over was stopped: {self._stop_reason}.")
        return Written(
            epoch=self._grant.epoch,
            start=self._grant.start,
            stop=self._grant.stop,
            digests=self._digests() if self._digest else (),
            num_bytes=sum(landed.num_bytes for _, landed in self._landed),
            write_s=sum(landed.seconds for _, landed in self._landed),
        )

    def _paired_tables(self, grant: Grant, peer: Peer, layout: KvLayout) -> PairedTables:
        if peer.incarnation != grant.incarnation:
            raise ValueError(
                f"it is of incarnation '{grant.incarnation}', the peer is '{peer.incarnation}'"
            )
        if peer.transport != grant.transport:
            raise ValueError(f"it is for '{grant.transport}', the peer's is '{peer.transport}'")
        if peer.num_bytes != layout.pool_bytes:
            raise ValueError(f"its layout needs {layout.pool_bytes} bytes of {peer.num_bytes}")
        if not 0 <= grant.lease_s < float("inf"):
            raise ValueError(f"its lease is {grant.lease_s:g} s")
        if not 0 <= grant.start <= grant.stop <= self._num_tokens:
            raise ValueError(
                f"tokens [{grant.start}, {grant.stop}) are not of the {self._num_tokens} here"
            )
        destination = BlockTable(layout, grant.blocks)
        destination.check_range(grant.start, grant.stop)
        tables = PairedTables(self._table, destination, grant.wire_dtype)
        if tables.share.first_of_windows(grant.start, grant.stop) < self._whole_from:
            raise ValueError(
                f"layers with a window lack tokens before {self._whole_from} here, which "
                f"whoever goes on from token {grant.stop} sees"
            )
        return tables

    def _accept(self, grant: Grant, peer: Peer, tables: PairedTables) -> None:
        self._grant = grant
        self._peer = peer
        self._queued = [
            tables.share.first(layer, grant.start, grant.stop) for layer in range(len(self._queued))
        ]
        self._transfer.grant(grant.lease_s, self._timers.now())

    def _queue_all(self) -> list[Write]:
        return [write for layer in range(len(self._computed)) for write in self._queue(layer)]

    def _queue(self, layer: int) -> list[Write]:
        """Queues under the lock. Callbacks are added outside: they may run at once, and take it."""
        if self._grant is None or self._peer is None or self._tables is None:
            return []
        start, stop = self._queued[layer], min(self._computed[layer], self._grant.stop)
        if stop <= start or not self._transfer.may_write:
            return []
        pairs = self._tables.pairs(layer, start, stop)
        self._queued[layer] = stop
        self._num_spans += len(pairs)
        self._transfer.begin_write()
        future = self._peer.write(
            pairs,
            epoch=self._grant.epoch,
            digest=self._digest,
            may_start=self._may_start,
        )
        if not self._pending:
            self._writing_since = self._timers.now()
        self._pending.add(future)
        return [(future, partial(self._write_ended, layer, start, stop))]

    def _hand_out(self, writes: list[Write]) -> None:
        for future, callback in writes:
            future.add_done_callback(callback)

    def _may_start(self) -> bool:
        """Asked on the writer thread: a process that was frozen must not write on."""
        with self._lock:
            return self._transfer.may_write and not self._transfer.is_lapsed(self._timers.now())

    def _write_ended(self, layer: int, start: int, stop: int, future: "Future[Landed]") -> None:
        """Runs on the writer thread, or where the future was cancelled."""
        failure = "cancelled" if future.cancelled() else future.exception()
        with self._lock:
            self._pending.discard(future)
            self.landed_at = self._timers.now()
            if isinstance(failure, WriteUnsettled):
                self._num_unsettled += 1  # in flight for as long as its receiver lives
            else:
                self._transfer.end_write()
            self._num_refused += isinstance(failure, WriteRefused)
            if failure is None:
                landed = future.result()
                digest = SpanDigest(layer=layer, start=start, stop=stop, digest=landed.digest or 0)
                self._landed.append((digest, landed))
        if failure is None:
            self._apply(None)
        else:
            self._apply(Event.STOP, Reason.WRITE_FAILED, f"a write failed: {failure}")

    def _apply(
        self, event: Event | None, reason: Reason = Reason.CANCELLED, text: str = ""
    ) -> None:
        with self._lock:
            if event is not None and not self._transfer.is_over:
                self._stop(event, reason, text)
            pending = [] if self._transfer.may_write else list(self._pending)
            self._settle()
        for future in pending:
            future.cancel()  # those that have not begun

    def _stop(self, event: Event, reason: Reason, text: str) -> None:
        """Runs under the lock. The first reason is the one that counts."""
        self._stop_reason = self._stop_reason or text
        self._failed = self._failed or (self._transfer.state, reason)
        self._transfer.apply(event)

    def _settle(self) -> None:
        """Closes the hand-over when its last write has ended, under the lock."""
        transfer, grant = self._transfer, self._grant
        if transfer.state is State.ABANDONED:
            transfer.apply(Event.CLOSE)
        elif transfer.state is State.GRANTED and grant and min(self._queued) >= grant.stop:
            transfer.apply(Event.WRITTEN)
        if transfer.is_over:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._announce)

    def _announce(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        self._forget_peer()
        if self._lease_timer is not None:
            self._lease_timer.cancel()
        if self._peer is not None:
            self._count(self._peer)
        if self._on_closed is not None:
            self._on_closed()

    def _count(self, peer: Peer) -> None:
        counters = self._stats.sent(peer)
        counters.num_refused_writes += self._num_refused
        if self._failed is not None:
            counters.failures[self._failed] += 1
        else:
            landed = [one for _, one in self._landed]
            counters.transferred(
                num_bytes=sum(one.num_bytes for one in landed),
                num_spans=self._num_spans,
                write_s=sum(one.seconds for one in landed),
            )

    def _peer_died(self) -> None:
        with self._lock:
            for _ in range(self._num_unsettled):
                self._transfer.end_write()
            self._num_unsettled = 0
        self._apply(Event.PEER_DIED, Reason.RECEIVER_DIED, "the receiver died")

    def _watch_lease(self) -> None:
        with self._lock:
            left_s = self._transfer.deadline - self._timers.now()
            is_live = self._transfer.may_write
        if is_live and left_s <= 0:
            text = "the lease lapsed: nothing was heard of the receiver"
            self._apply(Event.STOP, Reason.LAPSED, text)
        elif is_live:
            self._lease_timer = self._timers.call_later(left_s, self._watch_lease)

    def _digests(self) -> tuple[SpanDigest, ...]:
        return tuple(
            sorted((digest for digest, _ in self._landed), key=lambda one: (one.layer, one.start))
        )


def _nothing() -> None:
    return None
