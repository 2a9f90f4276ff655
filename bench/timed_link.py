"""Links that take their time beside any transport: what so many bytes a second make, each pair for
itself. For clusters whose workers are further apart than processes of one machine."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from kv_transfer.geometry import SpanPairs, Spans
from kv_transfer.pairs import Pairs
from kv_transfer.transport import Landed, Peer, Transport
from kv_transfer.writer_thread import submit


def timed_pairs(pairs: Pairs, bytes_per_s: float) -> Pairs:
    """The same pool and transports, slower."""
    slow = [TimedTransport(each, bytes_per_s) for each in pairs._transports.values()]
    return Pairs(pairs.pool, slow)


class TimedTransport:
    def __init__(self, inner: Transport, bytes_per_s: float) -> None:
        self.name = inner.name
        self._inner = inner
        self._bytes_per_s = bytes_per_s
        self._peers: dict[Peer, TimedPeer] = {}

    @property
    def address(self) -> str:
        return self._inner.address

    async def connect(self, address: str) -> "TimedPeer":
        inner = await self._inner.connect(address)
        if inner not in self._peers:
            self._peers[inner] = TimedPeer(inner, self._bytes_per_s)
            inner.life.on_end(lambda: self._peers.pop(inner).close())
        return self._peers[inner]

    def close(self) -> None:
        for peer in self._peers.values():
            peer.close()
        self._inner.close()


class TimedPeer:
    """One write at a time, on a thread of its own: other pairs go on meanwhile."""

    def __init__(self, inner: Peer, bytes_per_s: float) -> None:
        self.transport = inner.transport
        self.incarnation = inner.incarnation
        self.num_bytes = inner.num_bytes
        self.life = inner.life
        self._inner = inner
        self._bytes_per_s = bytes_per_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kv-link")

    def write(
        self, pairs: SpanPairs, *, epoch: int, digest: bool, may_start: Callable[[], bool]
    ) -> "Future[Landed]":
        def write_slowly() -> Landed:
            began = time.perf_counter()
            landed = self._inner.write(
                pairs, epoch=epoch, digest=digest, may_start=may_start
            ).result()
            due = began + landed.num_bytes / self._bytes_per_s
            time.sleep(max(0.0, due - time.perf_counter()))
            return replace(landed, seconds=time.perf_counter() - began)

        return submit(self._thread, write_slowly)

    def admit(self, epoch: int, allows: Callable[[Spans], bool]) -> None:
        self._inner.admit(epoch, allows)

    def revoke(self, epoch: int) -> bool:
        return self._inner.revoke(epoch)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
