"""Processes with a pool that others write to by NIXL, and what tests do with them."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np

from cluster.types import Incarnation
from kv_transfer.geometry import SpanPairs
from kv_transfer.nixl.transport import NixlPeer
from kv_transfer.pool import FilePool, PoolConfig
from kv_transfer.transport import Landed

KEY = b"of the cluster"
NUM_BYTES = 64 * 2**20
OWNER = """
import os, sys
os.environ["NIXL_LOG_LEVEL"] = "FATAL"  # as the transport would
import nixl_cu13
sys.modules["nixl"] = nixl_cu13  # which otherwise loads torch, to see which wheel fits: seconds
from pathlib import Path
from kv_transfer.nixl.transport import NixlTransport
from kv_transfer.pool import FilePool, PoolConfig
name, num_bytes, run_dir = sys.argv[1:]
pool = FilePool(PoolConfig(incarnation=name, num_bytes=int(num_bytes), run_dir=Path(run_dir)))
transport = NixlTransport(pool, host="127.0.0.1", key=b"of the cluster")
print(transport.address, flush=True)
sys.stdin.read()
transport.close()
pool.close()
"""


class Owner:
    """A process with a pool."""

    def __init__(self, process: subprocess.Popen[str], pool_file: Path) -> None:
        self._process = process
        self._pool_file = pool_file

    @cached_property
    def address(self) -> str:
        """Of its pool, once it has started."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> bool:
        """Returns when it is dead."""
        self.signal(signal.SIGKILL)
        return self._process.wait() != 0

    def holds(self, offset: int, num_bytes: int) -> bytes:
        with self._pool_file.open("rb") as file:
            file.seek(offset)
            return file.read(num_bytes)


@contextmanager
def started(run_dir: Path, name: str = "owner", before: str = "") -> Iterator[Owner]:
    command = [sys.executable, "-c", before + OWNER, name, str(NUM_BYTES), str(run_dir)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
        try:
            yield Owner(process, run_dir / f"kv-{name}")
        finally:
            process.kill()


def open_pool(run_dir: Path, name: str = "us") -> FilePool:
    config = PoolConfig(incarnation=Incarnation(name), num_bytes=NUM_BYTES, run_dir=run_dir)
    return FilePool(config)


def write(
    peer: NixlPeer,
    num_bytes: int = 4,
    offset: int = 0,
    may_start: Callable[[], bool] = lambda: True,
) -> Future[Landed]:
    offsets, sizes = np.array([offset]), np.array([num_bytes])
    pairs = SpanPairs(source=offsets, destination=offsets, sizes=sizes)
    return peer.write(pairs, epoch=1, digest=True, may_start=may_start)


async def landed(written: Future[Landed]) -> Landed:
    async with asyncio.timeout(10):
        return await asyncio.wrap_future(written)
