"""Ends of TCP transports for tests, and a writer that knows the key but keeps no rule."""

import asyncio
import socket
import struct
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from cluster.authority import PLAIN, Credentials
from cluster.measurements import Measurements
from cluster.types import Incarnation
from kv_transfer.geometry import SpanPairs
from kv_transfer.pool import FilePool, PoolConfig
from kv_transfer.tcp.dial import Dialler, TcpAddress
from kv_transfer.tcp.transport import TcpPeer, TcpTransport
from kv_transfer.tcp.wire import TlsWhereDue, Wire
from kv_transfer.transport import Landed

KEY = b"of the cluster"
NUM_BYTES = 3 << 20


class End:
    def __init__(
        self,
        name: str,
        run_dir: Path,
        *,
        key: bytes = KEY,
        host: str = "127.0.0.1",
        port: int = 0,
        credentials: Credentials = PLAIN,
        num_streams: int = 1,
        measurements: Measurements | None = None,
    ) -> None:
        self.pool = FilePool(
            PoolConfig(incarnation=Incarnation(name), num_bytes=NUM_BYTES, run_dir=run_dir)
        )
        self.transport = TcpTransport(
            self.pool,
            host=host,
            port=port,
            key=key,
            credentials=credentials,
            num_streams=num_streams,
            measurements=measurements,
        )
        self.memory = self.pool.memory

    @property
    def target(self) -> TcpAddress:
        return TcpAddress.parse(self.transport.address)

    @property
    def counters(self) -> dict[str, int]:
        counters = self.transport.counters
        return {name: getattr(counters, name) for name in counters.__slots__}

    def fill(self) -> None:
        self.memory[:] = np.random.default_rng(0).integers(1, 255, NUM_BYTES, dtype=np.uint8)

    def close(self) -> None:
        self.transport.close()
        self.pool.close()


def pairs_of(*spans: tuple[int, int, int]) -> SpanPairs:
    source, destination, sizes = np.array(spans, dtype=np.int64).T
    return SpanPairs(source=source, destination=destination, sizes=sizes)


def write(peer: TcpPeer, *spans: tuple[int, int, int], epoch: int = 1) -> Future[Landed]:
    return peer.write(pairs_of(*spans), epoch=epoch, digest=True, may_start=lambda: True)


async def landed(future: Future[Landed], within_s: float = 10) -> Landed:
    return await asyncio.wait_for(asyncio.wrap_future(future), within_s)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110 (what another process does sets no event)
            await asyncio.sleep(0.001)


class Intruder:
    """Proves itself as `name`, then says whatever it likes."""

    def __init__(self, name: str, to: End, *, port: int | None = None) -> None:
        dialler = Dialler(
            incarnation=Incarnation(name),
            num_bytes=NUM_BYTES,
            key=KEY,
            tls=TlsWhereDue(PLAIN),
            num_streams=1,
        )
        target = to.target if port is None else to.target._replace(port=port)
        self.wire: Wire = dialler.dial(target)[0]
        self.stream = socket.socket(fileno=socket.dup(self.wire.fileno()))
        self.stream.settimeout(10)

    def frame(
        self,
        epoch: int,
        *spans: tuple[int, int],
        payload: bytes,
        num_bytes: int | None = None,
        num_spans: int | None = None,
        conversion: bytes = bytes(7),  # none
    ) -> None:
        total = sum(size for _, size in spans) if num_bytes is None else num_bytes
        count = len(spans) if num_spans is None else num_spans
        self.stream.sendall(
            struct.pack("<QII", epoch, count, total)
            + conversion
            + b"".join(struct.pack("<q", offset) for offset, _ in spans)
            + b"".join(struct.pack("<I", size) for _, size in spans)
            + payload
        )

    def answer(self) -> int | None:
        """None when the other end hung up."""
        try:
            answer = self.stream.recv(1)
        except ConnectionError:
            return None
        return answer[0] if answer else None

    def close(self) -> None:
        self.stream.close()
        self.wire.close()
