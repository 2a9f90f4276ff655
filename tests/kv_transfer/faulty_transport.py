"""Any transport with faults in its writes: for tests.

Which write gets which fault comes from a seed, so a failure is replayed from its seed.
"""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from cluster.errors import TransferFailed
from cluster.types import Incarnation
from kv_transfer.geometry import SpanPairs, Spans
from kv_transfer.span_copy import Bytes, SpanCopier
from kv_transfer.transport import Landed, Peer, Transport, WriteRefused
from kv_transfer.writer_thread import submit


class Fault(StrEnum):
    DELAY = "delay"  # begun, and late
    DROP = "drop"  # said to have landed; nothing has moved
    TRUNCATE = "truncate"  # half of it lands, and that is said
    DUPLICATE = "duplicate"  # written twice
    CORRUPT = "corrupt"  # a byte is another one, before anyone hears that it has landed
    STALL = "stall"  # half of it lands; the rest when it is released
    DISCONNECT = "disconnect"  # fails, and the connection with it


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultPlan:
    """Shares of all writes, by fault; the rest goes well. Together at most 1."""

    shares: Mapping[Fault, float] = field(default_factory=dict)
    seed: int = 0
    delay_s: float = 0.02

    def fault(self, number: int) -> Fault | None:
        """What befalls the write of this number."""
        draw = random.Random(f"{self.seed}:{number}").random()
        for fault, share in self.shares.items():
            draw -= share
            if draw < 0:
                return fault
        return None


class FaultyTransport:
    """Writes go well until a peer is `disturbed`. A closed gate stalls all of them."""

    def __init__(self, inner: Transport) -> None:
        self.name = inner.name
        self.num_faults: Counter[Fault] = Counter()
        self.failure: Exception | None = None  # raised instead of every write
        self.held = threading.Event()  # a write stands still
        self.released = threading.Event()  # of what stands still, or will until then
        self.closing = threading.Event()
        self.is_open = True
        self._inner = inner
        self._plans: dict[Incarnation, tuple[FaultPlan, Bytes]] = {}
        self._peers: dict[Peer, FaultyPeer] = {}
        self._threads: list[ThreadPoolExecutor] = []

    @property
    def address(self) -> str:
        return self._inner.address

    def disturb(self, peer: Incarnation, plan: FaultPlan, source: Bytes) -> None:
        """From its next write on; `source` is our pool's memory."""
        self._plans[peer] = (plan, source)

    def plan(self, peer: Incarnation) -> tuple[FaultPlan, Bytes] | None:
        return self._plans.get(peer)

    def close_gate(self) -> None:
        self.held.clear()
        self.is_open = False

    def open_gate(self) -> None:
        self.is_open = True
        self.release()

    def release(self) -> None:
        """What stands still goes on."""
        released, self.released = self.released, threading.Event()
        released.set()

    async def connect(self, address: str) -> "FaultyPeer":
        inner = await self._inner.connect(address)
        if inner not in self._peers:
            thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kv-faults")
            self._threads.append(thread)
            self._peers[inner] = FaultyPeer(self, inner, thread)
            inner.life.on_end(lambda: self._forget(inner))
        return self._peers[inner]

    def close(self) -> None:
        self.closing.set()
        self.open_gate()
        for thread in self._threads:
            thread.shutdown(wait=True, cancel_futures=True)
        self._inner.close()

    def _forget(self, inner: Peer) -> None:
        del self._peers[inner]


class _Write(NamedTuple):
    pairs: SpanPairs
    epoch: int
    digest: bool


class FaultyPeer:
    """Has a thread of its own: what stands still here holds up no other peer."""

    def __init__(self, faults: FaultyTransport, inner: Peer, thread: ThreadPoolExecutor) -> None:
        self.transport = inner.transport
        self.incarnation = inner.incarnation
        self.num_bytes = inner.num_bytes
        self.life = inner.life
        self._loop = asyncio.get_running_loop()
        self._faults = faults
        self._inner = inner
        self._thread = thread
        self._num_writes = 0  # since it is disturbed

    def write(
        self,
        pairs: SpanPairs,
        *,
        epoch: int,
        digest: bool,
        may_start: Callable[[], bool],
    ) -> "Future[Landed]":
        def write_if_it_may() -> Landed:
            if not may_start():
                raise WriteRefused("The grant was stopped or lapsed before the write started.")
            # Begun is begun: what is in flight is not asked again.
            return self._disturbed(_Write(pairs, epoch, digest), self._faults.released)

        return submit(self._thread, write_if_it_may)

    def admit(self, epoch: int, allows: Callable[[Spans], bool]) -> None:
        self._inner.admit(epoch, allows)

    def revoke(self, epoch: int) -> bool:
        return self._inner.revoke(epoch)

    # -- on our thread -------------------------------------------------------------------------

    def _disturbed(self, write: _Write, released: threading.Event) -> Landed:
        """`released` is what was there before the gate is looked at: it may open meanwhile."""
        if (failure := self._faults.failure) is not None:
            raise failure
        if not self._faults.is_open:
            return self._stalled(write, released)
        if (planned := self._faults.plan(self.incarnation)) is None or not len(write.pairs):
            return self._written(write)
        plan, source = planned
        fault = plan.fault(self._num_writes)
        self._num_writes += 1
        if fault is None:
            return self._written(write)
        self._faults.num_faults[fault] += 1
        if fault is Fault.STALL:
            return self._stalled(write, released)
        return self._befallen(fault, write, source, plan.delay_s)

    def _befallen(self, fault: Fault, write: _Write, source: Bytes, delay_s: float) -> Landed:
        match fault:
            case Fault.DELAY:
                self._faults.closing.wait(delay_s)
            case Fault.DROP:
                return _as_if_landed(source, write)
            case Fault.TRUNCATE:
                return self._written(_first_half(write))
            case Fault.DUPLICATE:
                self._written(write)
            case Fault.CORRUPT:
                landed = self._written(write)
                self._written(_another_byte(source, write))
                return landed
            case Fault.DISCONNECT:
                self._loop.call_soon_threadsafe(self._disconnect)
                raise TransferFailed("The connection was dropped in the middle of a write.")
        return self._written(write)

    def _written(self, write: _Write) -> Landed:
        return self._inner.write(
            write.pairs, epoch=write.epoch, digest=write.digest, may_start=lambda: True
        ).result()

    def _stalled(self, write: _Write, released: threading.Event) -> Landed:
        self._written(_first_half(write))
        self._faults.held.set()
        if not self._faults.closing.is_set():
            released.wait()
        return self._written(write)

    def _disconnect(self) -> None:
        if not self.life.is_over:
            self.life.end()


def _first_half(write: _Write) -> _Write:
    pairs, half = write.pairs, len(write.pairs) // 2
    first = SpanPairs(
        source=pairs.source[:half],
        destination=pairs.destination[:half],
        sizes=pairs.sizes[:half],
        conversion=pairs.conversion,
    )
    return write._replace(pairs=first)


def _as_if_landed(source: Bytes, write: _Write) -> Landed:
    spans = Spans(offsets=write.pairs.source, sizes=write.pairs.sizes)
    digest = SpanCopier().digest(source, spans) if write.digest else None
    return Landed(num_bytes=write.pairs.num_bytes, seconds=0.0, digest=digest)


def _another_byte(source: Bytes, write: _Write) -> _Write:
    """The last byte of what was written, from a place where another value lies."""
    pairs = write.pairs
    last = int(pairs.source[-1] + pairs.sizes[-1] - 1)
    offset = int(pairs.destination[-1] + pairs.sizes[-1] - 1)
    other = int(np.argmax(source != source[last]))
    byte = SpanPairs(source=np.array([other]), destination=np.array([offset]), sizes=np.array([1]))
    return _Write(byte, write.epoch, digest=False)
