"""The directory of one running cluster: secrets, configurations, KV pool files, logs. In memory
where there is a memory file system, readable by its owner only, gone when the cluster ends."""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from cluster.errors import StartupError

PREFIX = "penstock-"
MEMORY = Path("/dev/shm")
LOCK = "lock"


def _is_usable(folder: Path, num_bytes: int) -> bool:
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        return False
    return shutil.disk_usage(folder).free > num_bytes


def _lock(path: Path) -> int | None:
    """The locked file, or None while another process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


class RunDir:
    """Held by a lock as long as this process lives: what is left without one, the next sweeps."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls, *, num_bytes: int = 0, parent: Path | None = None) -> Self:
        """`num_bytes`: what the pools will take; a memory file system without room for them
        would end a worker with SIGBUS in the middle of a write."""
        candidates = [parent] if parent else [MEMORY, Path(tempfile.gettempdir())]
        usable = next((path for path in candidates if _is_usable(path, num_bytes)), None)
        if usable is None:
            places = " nor ".join(map(str, candidates))
            raise StartupError(
                f"Neither {places} has {num_bytes / 2**20:.0f} MiB free for the KV pools: free"
                " some, or serve with fewer blocks (--num-blocks)."
            )
        sweep(usable)
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=usable))  # mode 0700
        # Locked before it has its name: a sweep never sees it unlocked.
        lock = _lock(path / f"{LOCK}.new")
        assert lock is not None
        (path / f"{LOCK}.new").rename(path / LOCK)
        (path / "logs").mkdir()
        return cls(path, lock)

    @property
    def secrets_file(self) -> Path:
        return self.path / "secrets.yaml"

    def log(self, name: str) -> Path:
        return self.path / "logs" / f"{name}.log"

    def config(self, name: str) -> Path:
        return self.path / f"{name}.yaml"

    def remove(self, *, keep_logs: bool = False) -> None:
        for path in self.path.iterdir():
            if path.is_dir() and not keep_logs:
                shutil.rmtree(path, ignore_errors=True)
            elif not path.is_dir() and path.name != LOCK:
                path.unlink(missing_ok=True)
        if not keep_logs:
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _abandoned(parent: Path) -> Iterator[Path]:
    for path in parent.glob(f"{PREFIX}*"):
        found = path.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and (path / LOCK).exists():
            yield path


def sweep(parent: Path) -> list[Path]:
    """Removes what clusters left behind that were killed; returns where they were."""
    swept = []
    for path in _abandoned(parent):
        lock = _lock(path / LOCK)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)
            swept.append(path)
    return swept
