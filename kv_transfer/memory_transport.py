"""The in-process twin of the transports: pools of one `MemoryNetwork`, for tests and simulations.

It keeps the same contract, can truly revoke unless told not to, and its processes die when told
to.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from cluster.errors import TransferFailed
from cluster.types import Incarnation
from kv_transfer.geometry import SpanPairs, Spans
from kv_transfer.life import Life
from kv_transfer.span_copy import Bytes, SpanCopier
from kv_transfer.transport import Landed, WriteRefused
from kv_transfer.writer_thread import WriterThread

_Epoch = tuple[Incarnation, int]  # of the writer, of the pool


@dataclass(slots=True, eq=False)
class MemoryPool:
    """A pool as its owner and its peers reach it."""

    incarnation: Incarnation
    memory: Bytes
    admitted: dict[_Epoch, Callable[[Spans], bool]] = field(default_factory=dict)
    landing: dict[_Epoch, int] = field(default_factory=dict)  # writes in flight
    lock: threading.Lock = field(default_factory=threading.Lock)
    lives: list[Life] = field(default_factory=list)
    is_dead: bool = False
    revokes: bool = True

    @property
    def num_bytes(self) -> int:
        return len(self.memory)

    @property
    def buffer(self) -> memoryview:
        return self.memory.data

    def renew(self, incarnation: Incarnation) -> None:
        self.incarnation = incarnation

    def digester(self) -> Callable[[Spans], int]:
        copier = SpanCopier()
        return lambda spans: copier.digest(self.memory, spans)

    def close(self) -> None:
        """Nothing is left behind."""


class MemoryNetwork:
    """The pools that reach each other."""

    __slots__ = ("_pools", "_revokes")

    def __init__(self, *, revokes: bool = True) -> None:
        """Without `revokes`, whoever is connected can write, as in shared memory."""
        self._pools: dict[str, MemoryPool] = {}
        self._revokes = revokes

    def pool(self, incarnation: str, num_bytes: int) -> MemoryPool:
        pool = MemoryPool(
            Incarnation(incarnation), np.zeros(num_bytes, dtype=np.uint8), revokes=self._revokes
        )
        self._pools[incarnation] = pool
        return pool

    def find(self, address: str) -> MemoryPool:
        pool = self._pools.get(address)
        if pool is None or pool.is_dead:
            raise TransferFailed(f"There is no live KV pool '{address[:200]}' in this process.")
        return pool

    def kill(self, incarnation: str) -> None:
        """Its process dies: everyone connected sees it. On the event loop."""
        pool = self._pools.pop(incarnation)
        pool.is_dead = True
        for life in pool.lives:
            life.end()


class MemoryTransport:
    name = "memory"

    def __init__(self, network: MemoryNetwork, pool: MemoryPool) -> None:
        self._network = network
        self._pool = pool
        self._writer = WriterThread("kv-memory", pool.memory)
        self._peers: dict[str, MemoryPeer] = {}

    @property
    def address(self) -> str:
        return self._pool.incarnation

    async def connect(self, address: str) -> "MemoryPeer":
        peer = self._peers.get(address)
        if peer is None or peer.life.is_over:
            peer = MemoryPeer(self._pool, self._writer, self._network.find(address))
            self._peers[address] = peer
        return peer

    def close(self) -> None:
        self._writer.close()


class MemoryPeer:
    transport = MemoryTransport.name

    def __init__(self, own: MemoryPool, writer: WriterThread, pool: MemoryPool) -> None:
        self.incarnation = pool.incarnation
        self.num_bytes = len(pool.memory)
        self.life = Life()
        self._own = own
        self._writer = writer
        self._pool = pool
        pool.lives.append(self.life)

    def write(
        self,
        pairs: SpanPairs,
        *,
        epoch: int,
        digest: bool,
        may_start: Callable[[], bool],
    ) -> "Future[Landed]":
        pool, key = self._pool, (self._own.incarnation, epoch)

        def admitted() -> bool:
            return not self._own.is_dead and may_start() and _begin(pool, key, pairs)

        future = self._writer.write(lambda: pool.memory, pairs, digest=digest, may_start=admitted)
        future.add_done_callback(lambda done: _end(pool, key, done))
        return future

    def admit(self, epoch: int, allows: Callable[[Spans], bool]) -> None:
        with self._own.lock:
            self._own.admitted[self.incarnation, epoch] = allows

    def revoke(self, epoch: int) -> bool:
        with self._own.lock:
            self._own.admitted.pop((self.incarnation, epoch), None)
            return self._own.revokes and (self.incarnation, epoch) not in self._own.landing


def _begin(pool: MemoryPool, key: _Epoch, pairs: SpanPairs) -> bool:
    with pool.lock:
        if pool.revokes and not _is_admitted(pool, key, pairs):
            return False
        pool.landing[key] = pool.landing.get(key, 0) + 1
        return True


def _is_admitted(pool: MemoryPool, key: _Epoch, pairs: SpanPairs) -> bool:
    allows = pool.admitted.get(key)
    return allows is not None and allows(pairs.destination_spans)


def _end(pool: MemoryPool, key: _Epoch, done: "Future[Landed]") -> None:
    if done.cancelled() or isinstance(done.exception(), WriteRefused | ValueError):
        return  # never began
    with pool.lock:
        pool.landing[key] -= 1
        if not pool.landing[key]:
            del pool.landing[key]
