"""The directory of one running cluster: secrets, configurations, KV pool files, logs. In memory
where there is a memory file system, readable by its owner only, gone when the cluster ends."""

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from cluster.errors import StartupError
from cluster.lock import lock

PREFIX = "penstock-"
MEMORY = Path("/dev/shm")
LOCK = "lock"


def _candidates() -> Iterator[Path]:
    yield MEMORY
    try:
        yield Path(tempfile.gettempdir())
    except OSError:
        return  # no place at all can be written


def _has_room(folder: Path, num_bytes: int) -> bool:
    try:
        return os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > num_bytes
    except OSError:
        return False


def _create(folder: Path) -> tuple[Path, int]:
    """A new directory, and its lock."""
    path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))  # mode 0700
    try:
        (path / "logs").mkdir()
        # Locked before it has its name: a sweep never sees it unlocked.
        held = lock(path / f"{LOCK}.new")
        assert held is not None
        (path / f"{LOCK}.new").rename(path / LOCK)
    except OSError:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return path, held


class RunDir:
    """Held by a lock as long as this process lives: what is left without one, the next sweeps."""

    def __init__(self, path: Path, held: int) -> None:
        self.path = path
        self._held = held

    @classmethod
    def create(cls, *, num_bytes: int = 0, parent: Path | None = None) -> Self:
        """`num_bytes`: what the pools will take; a memory file system without room for them
        would end a worker with SIGBUS in the middle of a write."""
        candidates = [parent] if parent else list(_candidates())
        for folder in candidates:
            sweep(folder)
            if _has_room(folder, num_bytes):
                with contextlib.suppress(OSError):  # the next may do
                    return cls(*_create(folder))
        places = " nor ".join(map(str, candidates)) or "TMPDIR nor any other place"
        raise StartupError(
            f"Neither {places} can be written and has {num_bytes / 2**20:.0f} MiB free for the KV"
            " pools: free some, name another place with TMPDIR, or serve with fewer blocks"
            " (--num-blocks)."
        )

    @property
    def secrets_file(self) -> Path:
        return self.path / "secrets.yaml"

    @property
    def logs(self) -> Path:
        """Where they have no place that outlives the cluster."""
        return self.path / "logs"

    def config(self, name: str) -> Path:
        return self.path / f"{name}.yaml"

    def remove(self, *, keep_logs: bool = False) -> None:
        """What somebody else has removed already is no failure."""
        for path in self.path.glob("*"):
            if path.is_dir() and not keep_logs:
                shutil.rmtree(path, ignore_errors=True)
            elif not path.is_dir() and path.name != LOCK:
                path.unlink(missing_ok=True)
        if not keep_logs:
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._held)


def _is_ours(path: Path) -> bool:
    found = path.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and (path / LOCK).exists()


def sweep(parent: Path) -> list[Path]:
    """Removes what clusters left behind that were killed; returns where they were."""
    swept = []
    for path in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another sweeps it, too, or it cannot be had
            if _is_ours(path) and (held := lock(path / LOCK)) is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(held)
                swept.append(path)
    return swept
