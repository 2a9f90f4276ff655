"""KV between processes of one machine: the writer maps its peer's pool file and copies.

Memory once mapped cannot be taken back, so nothing is revoked here.
"""

import mmap
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cluster.errors import TransferFailed
from cluster.measurements import Measurements
from cluster.types import Incarnation
from kv_transfer.geometry import SpanPairs, Spans
from kv_transfer.life import Life, ProcessAddress, ProcessWatch
from kv_transfer.pool import FILE_NAME, OPEN_EXISTING, PREFIX, FilePool, is_locked, is_private_file
from kv_transfer.span_copy import Bytes
from kv_transfer.transport import Landed
from kv_transfer.writer_thread import WriterThread


class _PoolAddress(NamedTuple):
    file_name: str
    num_bytes: int
    process: ProcessAddress

    def __str__(self) -> str:
        return ":".join(map(str, (self.file_name, self.num_bytes, *self.process)))


class SharedMemoryTransport:
    name = "shared_memory"

    def __init__(self, pool: FilePool, measurements: Measurements | None = None) -> None:
        self.address = str(_PoolAddress(pool.path.name, pool.num_bytes, ProcessAddress.own()))
        self._run_dir = pool.path.parent
        self._writer = WriterThread("kv-writer", pool.memory, measurements)
        self._peers: dict[str, SharedMemoryPeer] = {}

    async def connect(self, address: str) -> "SharedMemoryPeer":
        peer = self._peers.get(address)
        if peer is None:
            peer = _open_peer(self._writer, self._run_dir, address)
            self._writer.prepare()
            self._peers[address] = peer
            peer.life.on_end(lambda: self._forget(address))
        return peer

    def close(self) -> None:
        self._writer.close()
        for peer in self._peers.values():
            peer.close()
        self._peers.clear()

    def _forget(self, address: str) -> None:
        self._peers.pop(address).close()


class SharedMemoryPeer:
    """Another process's pool file, and the watch over that process."""

    transport = SharedMemoryTransport.name

    def __init__(self, writer: WriterThread, address: _PoolAddress, fd: int) -> None:
        self.incarnation = Incarnation(address.file_name.removeprefix(PREFIX))
        self.num_bytes = address.num_bytes
        self.life = Life()
        # If its lock is held once the watch stands, the owner lived when the watch was begun:
        # its pid had not been given to another process.
        self._watch = ProcessWatch(address.process, self.life, is_it=lambda: is_locked(fd))
        self._writer = writer
        self._fd = fd
        self._pool: Bytes | None = None
        self._mapping = threading.Lock()  # a descriptor closed meanwhile could be another file

    def write(
        self,
        pairs: SpanPairs,
        *,
        epoch: int,
        digest: bool,
        may_start: Callable[[], bool],
    ) -> "Future[Landed]":
        return self._writer.write(self._mapped, pairs, digest=digest, may_start=may_start)

    def admit(self, epoch: int, allows: Callable[[Spans], bool]) -> None:
        """Whoever can map our file can write it: nothing to enforce."""

    def revoke(self, epoch: int) -> bool:
        return False

    def close(self) -> None:
        self._watch.close()
        with self._mapping:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _mapped(self) -> Bytes:
        """The peer's memory. Pages are mapped as they are touched: all at once would hold the
        interpreter lock for a tenth of a second a gigabyte."""
        with self._mapping:
            if self._pool is None:
                if self._fd < 0:
                    raise TransferFailed(f"The KV pool of '{self.incarnation}' is gone.")
                self._pool = np.frombuffer(mmap.mmap(self._fd, self.num_bytes), dtype=np.uint8)
            return self._pool


def _open_peer(writer: WriterThread, run_dir: Path, text: str) -> SharedMemoryPeer:
    address = _parse(text)
    try:
        fd = os.open(run_dir / address.file_name, OPEN_EXISTING)
    except OSError as error:
        raise TransferFailed(
            f"There is no KV pool '{address.file_name}' in {run_dir} ({error.strerror}): its "
            "worker is gone, or has another machine or run_dir."
        ) from error
    try:
        _check_file(address, os.fstat(fd))
        return SharedMemoryPeer(writer, address, fd)
    except BaseException:
        os.close(fd)
        raise


def _check_file(address: _PoolAddress, status: os.stat_result) -> None:
    if not is_private_file(status):
        raise TransferFailed(f"'{address.file_name}' is not a private KV pool file of this user.")
    if status.st_size != address.num_bytes:
        raise TransferFailed(
            f"KV pool '{address.file_name}' has {status.st_size} bytes; "
            f"its worker says {address.num_bytes}."
        )
    if not address.process.is_here:
        raise TransferFailed(
            f"The owner of KV pool '{address.file_name}' lives in another pid namespace, where "
            "its death cannot be seen: share the namespace or use another transport."
        )


def _parse(text: str) -> _PoolAddress:
    file_name, *rest = text.split(":")
    numbers = rest[:3]
    if (
        not FILE_NAME.fullmatch(file_name)
        or len(rest) != 4
        or not all(number.isascii() and number.isdigit() and len(number) < 20 for number in numbers)
    ):
        raise TransferFailed(f"'{text[:200]}' is not the address of a shared-memory KV pool.")
    num_bytes, pid, namespace = map(int, numbers)
    return _PoolAddress(file_name, num_bytes, ProcessAddress(pid, namespace, rest[3]))
