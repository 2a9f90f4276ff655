"""Any transport, with a gate before (or in the middle of) each write: for tests and faults.

A closed gate holds writes without a sleep; a delay slows them; a failure is raised instead.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from kv_transfer.layout import SpanPairs, Spans
from kv_transfer.transport import Landed, Peer, Transport, WriteRefused
from kv_transfer.writer_thread import submit


class GatedTransport:
    """`close_gate` holds the next writes; `held` tells that one stands at the gate."""

    def __init__(self, inner: Transport, *, delay_s: float = 0.0, in_the_middle: bool = False):
        self.name = inner.name
        self.address = inner.address
        self.held = threading.Event()
        self.failure: Exception | None = None
        self.in_the_middle = in_the_middle
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kv-gate")
        self._inner = inner
        self._delay_s = delay_s
        self._gate = threading.Event()
        self._gate.set()
        self._never = threading.Event()
        self._peers: dict[int, GatedPeer] = {}

    def close_gate(self) -> None:
        self.held.clear()
        self._gate.clear()

    def open_gate(self) -> None:
        self._gate.set()

    def pass_gate(self) -> None:
        self.held.set()
        self._gate.wait()
        self._never.wait(self._delay_s)
        if self.failure is not None:
            raise self.failure

    async def connect(self, address: str) -> "GatedPeer":
        peer = await self._inner.connect(address)
        return self._peers.setdefault(id(peer), GatedPeer(self, peer))

    def close(self) -> None:
        self._gate.set()
        self._never.set()
        self.thread.shutdown(wait=True, cancel_futures=True)
        self._inner.close()


class GatedPeer:
    def __init__(self, gate: GatedTransport, inner: Peer) -> None:
        self.transport = inner.transport
        self.incarnation = inner.incarnation
        self.num_bytes = inner.num_bytes
        self.life = inner.life
        self._gate = gate
        self._inner = inner

    def write(
        self,
        pairs: SpanPairs,
        *,
        epoch: int,
        digest: bool,
        may_start: Callable[[], bool],
    ) -> "Future[Landed]":
        def write_through_the_gate() -> Landed:
            if not may_start():
                raise WriteRefused("The grant was stopped or lapsed before the write started.")
            if self._gate.in_the_middle:
                half = len(pairs) // 2
                first = SpanPairs(
                    source=pairs.source[:half],
                    destination=pairs.destination[:half],
                    sizes=pairs.sizes[:half],
                )
                self._write_now(first, epoch, digest=False)
            self._gate.pass_gate()
            # Begun is begun: what is in flight is not asked again.
            return self._write_now(pairs, epoch, digest=digest)

        return submit(self._gate.thread, write_through_the_gate)

    def admit(self, epoch: int, allows: Callable[[Spans], bool]) -> None:
        self._inner.admit(epoch, allows)

    def revoke(self, epoch: int) -> bool:
        return self._inner.revoke(epoch)

    def _write_now(self, pairs: SpanPairs, epoch: int, *, digest: bool) -> Landed:
        return self._inner.write(pairs, epoch=epoch, digest=digest, may_start=lambda: True).result()
