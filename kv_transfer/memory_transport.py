"""The in-process twin of the transports: pools of one `MemoryNetwork`, for tests and simulations.

It keeps the same contract, can truly revoke, and its processes die when told to.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from cluster.errors import TransferFailed
from cluster.types import Incarnation
from kv_transfer.layout import SpanPairs
from kv_transfer.life import Life
from kv_transfer.span_copy import Bytes
from kv_transfer.transport import Landed, Peer, WriteRefused
from kv_transfer.writer_thread import WriterThread


@dataclass(slots=True, eq=False)
class MemoryPool:
    """A pool as its peers reach it."""

    incarnation: Incarnation
    memory: Bytes
    revoked: set[int] = field(default_factory=set)
    landing: dict[int, int] = field(default_factory=dict)  # epoch -> writes in flight
    lock: threading.Lock = field(default_factory=threading.Lock)
    lives: list[Life] = field(default_factory=list)
    is_dead: bool = False


class MemoryNetwork:
    """The pools that reach each other."""

    __slots__ = ("_pools",)

    def __init__(self) -> None:
        self._pools: dict[str, MemoryPool] = {}

    def open(self, incarnation: str, num_bytes: int) -> "MemoryTransport":
        pool = MemoryPool(Incarnation(incarnation), np.zeros(num_bytes, dtype=np.uint8))
        self._pools[incarnation] = pool
        return MemoryTransport(self, pool)

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
    def buffer(self) -> memoryview:
        return self._pool.memory.data

    @property
    def address(self) -> str:
        return self._pool.incarnation

    def connect(self, address: str) -> "MemoryPeer":
        peer = self._peers.get(address)
        if peer is None or peer.life.is_over:
            peer = MemoryPeer(self._network.find(address))
            self._peers[address] = peer
        return peer

    def write(
        self,
        peer: Peer,
        pairs: SpanPairs,
        *,
        epoch: int,
        digest: bool,
        may_start: Callable[[], bool],
    ) -> "Future[Landed]":
        assert isinstance(peer, MemoryPeer)
        pool = peer.pool

        def admitted() -> bool:
            return not self._pool.is_dead and may_start() and _begin(pool, epoch)

        future = self._writer.write(lambda: pool.memory, pairs, digest=digest, may_start=admitted)
        future.add_done_callback(lambda done: _end(pool, epoch, done))
        return future

    def revoke(self, epoch: int) -> bool:
        with self._pool.lock:
            self._pool.revoked.add(epoch)
            return epoch not in self._pool.landing

    def close(self) -> None:
        self._writer.close()


class MemoryPeer:
    def __init__(self, pool: MemoryPool) -> None:
        self.incarnation = pool.incarnation
        self.num_bytes = len(pool.memory)
        self.life = Life()
        self.pool = pool
        pool.lives.append(self.life)


def _begin(pool: MemoryPool, epoch: int) -> bool:
    with pool.lock:
        if epoch in pool.revoked:
            return False
        pool.landing[epoch] = pool.landing.get(epoch, 0) + 1
        return True


def _end(pool: MemoryPool, epoch: int, done: "Future[Landed]") -> None:
    if done.cancelled() or isinstance(done.exception(), WriteRefused | ValueError):
        return  # never began
    with pool.lock:
        pool.landing[epoch] -= 1
        if not pool.landing[epoch]:
            del pool.landing[epoch]
