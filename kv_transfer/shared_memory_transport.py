"""KV between processes of one machine: each pool is a 0600 file that its peers map.

The owner holds the file's lock for life and unlinks it at the end; what a killed process
leaves, `sweep` removes. Memory once mapped cannot be taken back, so nothing is revoked here.
"""

import asyncio
import fcntl
import mmap
import os
import re
import select
import stat
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cluster.errors import ConfigError, TransferFailed
from cluster.types import Incarnation
from kv_transfer.layout import SpanPairs
from kv_transfer.life import Life
from kv_transfer.span_copy import Bytes
from kv_transfer.transport import Landed, Peer, PoolConfig
from kv_transfer.writer_thread import WriterThread

PREFIX = "kv-"
_FILE_NAME = re.compile(r"kv-[A-Za-z0-9_.-]{1,128}")
_OPEN_EXISTING = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class _Address(NamedTuple):
    """`pid_namespace` is there because a pid means nothing in another one."""

    file_name: str
    num_bytes: int
    pid: int
    pid_namespace: int

    def __str__(self) -> str:
        return ":".join(map(str, self))


class SharedMemoryTransport:
    name = "shared_memory"

    def __init__(self, config: PoolConfig) -> None:
        self._run_dir = config.run_dir
        self._file_name = PREFIX + config.incarnation
        if not _FILE_NAME.fullmatch(self._file_name):
            raise ConfigError(f"'{config.incarnation}' cannot name a KV pool: use letters, digits.")
        self._fd = _create_pool_file(config.run_dir / self._file_name, config.num_bytes)
        self._memory = mmap.mmap(self._fd, config.num_bytes, mmap.MAP_SHARED | mmap.MAP_POPULATE)
        self._writer = WriterThread("kv-writer", np.frombuffer(self._memory, dtype=np.uint8))
        self._peers: dict[str, SharedMemoryPeer] = {}
        self._is_closed = False

    @property
    def buffer(self) -> memoryview:
        return memoryview(self._memory)

    @property
    def address(self) -> str:
        return str(_Address(self._file_name, len(self._memory), os.getpid(), _pid_namespace()))

    def connect(self, address: str) -> "SharedMemoryPeer":
        """Must be called on the event loop, which then watches the peer's process."""
        peer = self._peers.get(address)
        if peer is None:
            peer = _open_peer(self._run_dir, address)
            self._peers[address] = peer
            peer.life.on_end(lambda: self._forget(address))
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
        assert isinstance(peer, SharedMemoryPeer)
        return self._writer.write(peer.pool, pairs, digest=digest, may_start=may_start)

    def revoke(self, epoch: int) -> bool:
        return False

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._writer.close()
        for peer in self._peers.values():
            peer.close()
        self._peers.clear()
        (self._run_dir / self._file_name).unlink(missing_ok=True)
        os.close(self._fd)  # the mapping, and with it the lock, lives while tensors lie in it

    def _forget(self, address: str) -> None:
        self._peers.pop(address).close()


class SharedMemoryPeer:
    """Another process's pool file, and the watch over that process."""

    def __init__(self, address: _Address, fd: int, pidfd: int) -> None:
        self.incarnation = Incarnation(address.file_name.removeprefix(PREFIX))
        self.num_bytes = address.num_bytes
        self.life = Life()
        self._fd = fd
        self._pidfd = pidfd
        self._pool: Bytes | None = None
        self._mapping = threading.Lock()  # a descriptor closed meanwhile could be another file
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pidfd, self._on_exit)  # readable when the whole process is dead

    def pool(self) -> Bytes:
        """The peer's memory. Pages are mapped as they are touched: all at once would hold the
        interpreter lock for a tenth of a second a gigabyte."""
        with self._mapping:
            if self._pool is None:
                if self._fd < 0:
                    raise TransferFailed(f"The KV pool of '{self.incarnation}' is gone.")
                self._pool = np.frombuffer(mmap.mmap(self._fd, self.num_bytes), dtype=np.uint8)
            return self._pool

    def close(self) -> None:
        self._stop_watching()
        with self._mapping:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _on_exit(self) -> None:
        self._stop_watching()
        self.life.end()

    def _stop_watching(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


def sweep(run_dir: Path) -> list[str]:
    """Removes the pool files whose owners are dead; returns their names. For the supervisor."""
    swept = []
    for path in sorted(run_dir.glob(PREFIX + "*")):
        try:
            fd = os.open(path, _OPEN_EXISTING)
        except OSError:
            continue  # gone meanwhile, a link, or not ours
        try:
            if _is_our_file(os.fstat(fd)) and not _is_locked(fd):
                path.unlink(missing_ok=True)
                swept.append(path.name)
        finally:
            os.close(fd)
    return swept


def _create_pool_file(path: Path, num_bytes: int) -> int:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                break
            os.close(fd)  # swept before it was locked: once more
        os.fchmod(fd, 0o600)
    except OSError as error:
        raise ConfigError(f"The KV pool file {path} cannot be created: {error}.") from error
    try:
        # Taken now: a full disk is an error here, and a SIGBUS in the middle of a request.
        os.posix_fallocate(fd, 0, num_bytes)
    except OSError as error:
        path.unlink(missing_ok=True)
        os.close(fd)
        raise ConfigError(
            f"There is no room for a KV pool of {num_bytes:,} bytes in {path.parent} ({error}): "
            "lower num_blocks or choose another run_dir."
        ) from error
    return fd


def _open_peer(run_dir: Path, text: str) -> SharedMemoryPeer:
    address = _parse(text)
    try:
        fd = os.open(run_dir / address.file_name, _OPEN_EXISTING)
    except OSError as error:
        raise TransferFailed(
            f"There is no KV pool '{address.file_name}' in {run_dir} ({error.strerror}): its "
            "worker is gone, or has another machine or run_dir."
        ) from error
    try:
        return SharedMemoryPeer(address, fd, _watch_owner(address, fd))
    except BaseException:
        os.close(fd)
        raise


def _watch_owner(address: _Address, fd: int) -> int:
    """A pidfd of the process that owns the file.

    The order matters: if the lock is still held after the pidfd was taken, the owner lived
    when it was taken, so its pid had not been given to another process.
    """
    _check_file(address, os.fstat(fd))
    try:
        pidfd = os.pidfd_open(address.pid)
    except OSError as error:
        raise TransferFailed(f"The owner of KV pool '{address.file_name}' is dead.") from error
    if not _is_locked(fd) or select.select([pidfd], [], [], 0)[0]:
        os.close(pidfd)
        raise TransferFailed(f"The owner of KV pool '{address.file_name}' is dead.")
    return pidfd


def _check_file(address: _Address, status: os.stat_result) -> None:
    if not _is_our_file(status):
        raise TransferFailed(f"'{address.file_name}' is not a private KV pool file of this user.")
    if status.st_size != address.num_bytes:
        raise TransferFailed(
            f"KV pool '{address.file_name}' has {status.st_size} bytes; "
            f"its worker says {address.num_bytes}."
        )
    if address.pid_namespace != _pid_namespace():
        raise TransferFailed(
            f"The owner of KV pool '{address.file_name}' lives in another pid namespace, where "
            "its death cannot be seen: share the namespace or use another transport."
        )


def _is_our_file(status: os.stat_result) -> bool:
    return (
        stat.S_ISREG(status.st_mode)
        and stat.S_IMODE(status.st_mode) == 0o600
        and status.st_uid == os.geteuid()
    )


def _is_locked(fd: int) -> bool:
    """Whether the owner lives. The lock taken here goes with the descriptor."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _parse(text: str) -> _Address:
    file_name, *numbers = text.split(":")
    if (
        not _FILE_NAME.fullmatch(file_name)
        or len(numbers) != 3
        or not all(number.isascii() and number.isdigit() and len(number) < 20 for number in numbers)
    ):
        raise TransferFailed(f"'{text[:200]}' is not the address of a shared-memory KV pool.")
    return _Address(file_name, *map(int, numbers))


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino
