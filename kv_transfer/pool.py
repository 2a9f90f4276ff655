"""A worker's KV memory: a private file that processes of the same machine can map.

The owner holds the file's lock for life and unlinks it at the end; what a killed process leaves,
`sweep` removes: by its supervisor, or by whoever makes the next pool in the same directory.
"""

import contextlib
import fcntl
import mmap
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from cluster.errors import ConfigError
from cluster.types import Incarnation
from kv_transfer.geometry import Spans
from kv_transfer.span_copy import Bytes, SpanCopier

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "kv-"
FILE_NAME = re.compile(r"kv-[A-Za-z0-9_.-]{1,128}")
OPEN_EXISTING = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """A pool to allocate: whose it is, how large, and where its file lies."""

    incarnation: Incarnation
    num_bytes: int
    run_dir: Path


class KvPool(Protocol):
    """Memory that peers write into, on the host or on a device. Zeroed and writable from the
    start."""

    @property
    def incarnation(self) -> Incarnation: ...

    @property
    def num_bytes(self) -> int: ...

    @property
    def buffer(self) -> "memoryview | Tensor":
        """All of it, for the engine, whose tensors lie in it; on a device, a tensor of bytes."""
        ...

    def renew(self, incarnation: Incarnation) -> None:
        """Gives the memory, as it is, to the next life of the same process: nobody may write into
        it by then, and no transport may be open on it."""
        ...

    def digester(self) -> Callable[[Spans], int]:
        """xxh3_64 of spans of this pool, as if they were one run. For one thread at a time."""
        ...

    def close(self) -> None: ...


class FilePool:
    """Taken in full when it is made: a full disk is an error here, and not a SIGBUS in the
    middle of a request."""

    def __init__(self, config: PoolConfig) -> None:
        self.incarnation = config.incarnation
        self.path = _path(config.run_dir, config.incarnation)
        sweep(config.run_dir)  # a worker started by hand has no supervisor that would
        self._fd = _create_file(self.path, config.num_bytes)
        self._mapping = mmap.mmap(self._fd, config.num_bytes, mmap.MAP_SHARED | mmap.MAP_POPULATE)
        self.memory: Bytes = np.frombuffer(self._mapping, dtype=np.uint8)

    @property
    def num_bytes(self) -> int:
        return len(self._mapping)

    @property
    def buffer(self) -> memoryview:
        return memoryview(self._mapping)

    def renew(self, incarnation: Incarnation) -> None:
        path = _path(self.path.parent, incarnation)
        self.path.rename(path)
        self.incarnation, self.path = incarnation, path

    def digester(self) -> Callable[[Spans], int]:
        copier = SpanCopier()
        return lambda spans: copier.digest(self.memory, spans)

    def close(self) -> None:
        """The memory, and with it the lock, lives while tensors lie in it."""
        if self._fd >= 0:
            self.path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1


def _path(run_dir: Path, incarnation: Incarnation) -> Path:
    path = run_dir / (PREFIX + incarnation)
    if not FILE_NAME.fullmatch(path.name):
        raise ConfigError(f"'{incarnation}' cannot name a KV pool: use letters, digits.")
    return path


def sweep(run_dir: Path) -> list[str]:
    """Removes the pool files whose owners are dead; returns their names. What cannot be opened
    or removed is left: it is somebody else's."""
    swept = []
    for path in sorted(run_dir.glob(PREFIX + "*")):
        with contextlib.suppress(OSError):
            fd = os.open(path, OPEN_EXISTING)
            try:
                if is_private_file(os.fstat(fd)) and not is_locked(fd):
                    path.unlink(missing_ok=True)
                    swept.append(path.name)
            finally:
                os.close(fd)
    return swept


def is_private_file(status: os.stat_result) -> bool:
    return (
        stat.S_ISREG(status.st_mode)
        and stat.S_IMODE(status.st_mode) == 0o600
        and status.st_uid == os.geteuid()
    )


def is_locked(fd: int) -> bool:
    """Tells whether the owner lives. The lock taken here goes with the descriptor."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _create_file(path: Path, num_bytes: int) -> int:
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
        os.posix_fallocate(fd, 0, num_bytes)
    except OSError as error:
        path.unlink(missing_ok=True)
        os.close(fd)
        raise ConfigError(
            f"There is no room for a KV pool of {num_bytes:,} bytes in {path.parent} ({error}): "
            "lower num_blocks or choose another run_dir."
        ) from error
    return fd
