"""The directory of one running cluster: secrets, configurations, KV pool files, logs. In memory
where there is a memory file system, readable by its owner only, gone when the cluster ends.

What `serve` makes is one launcher's. Workers that are placed one by one on a machine share theirs,
under a name that each of them knows: the first finds it empty, the last takes it away.
"""

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from cluster.errors import StartupError
from cluster.lock import lock, lock_shared
from deploy.orphan import end_orphan

PREFIX = "penstock-"
MEMORY = Path("/dev/shm")
LOCK = "lock"
LOGS = "logs"
DESCRIBED = "cluster.yaml"
SECRETS = "secrets.yaml"
SHARED = ".placed"
PROCESS = ".process"


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


def _create(folder: Path, name: str) -> tuple[Path, int]:
    """A new directory, and its lock."""
    path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{name}", dir=folder))  # mode 0700
    try:
        (path / LOGS).mkdir()
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
    def create(cls, name: str = "", *, num_bytes: int = 0, parent: Path | None = None) -> Self:
        """`name`: of the cluster; `num_bytes`: what the pools will take; a memory file system
        without room for them would end a worker with SIGBUS in the middle of a write."""
        candidates = [parent] if parent else list(_candidates())
        for folder in candidates:
            sweep(folder)
            if _has_room(folder, num_bytes):
                with contextlib.suppress(OSError):  # the next may do
                    return cls(*_create(folder, f"{name}-" if name else ""))
        places = " nor ".join(map(str, candidates)) or "TMPDIR nor any other place"
        raise StartupError(
            f"Neither {places} can be written and has {num_bytes / 2**20:.0f} MiB free for the KV"
            " pools: free some, name another place with TMPDIR, or serve with fewer blocks"
            " (--num-blocks, or 'numBlocks' of a pool)."
        )

    @classmethod
    def join(cls, name: str, *, parent: Path | None = None) -> Self:
        """Opens the directory of all who join by this name on this machine. Raises OSError."""
        path = shared_path(name, parent)
        sweep(path.parent)
        while True:
            path.mkdir(mode=0o700, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # taken away meanwhile: once more
                if not _is_private(path):
                    raise PermissionError(f"{path} is another user's, or others may write into it")
                clear(path, keeps_itself=True)
                if (held := lock_shared(path / LOCK)) is not None:
                    (path / LOGS).mkdir(exist_ok=True)
                    return cls(path, held)

    @property
    def secrets_file(self) -> Path:
        return self.path / SECRETS

    @property
    def described(self) -> Path:
        """The cluster's file as it is in force."""
        return self.path / DESCRIBED

    @property
    def logs(self) -> Path:
        """Names the place of logs that have none that outlives the cluster."""
        return self.path / LOGS

    def config(self, name: str) -> Path:
        return self.path / f"{name}.yaml"

    def process(self, name: str) -> Path:
        """The note of a process that its launcher's death may leave here (`deploy.orphan`)."""
        return self.path / f"{name}{PROCESS}"

    def leave(self) -> None:
        """The last who has joined takes it away."""
        os.close(self._held)
        clear(self.path)

    def remove(self, *, keep_logs: bool = False) -> None:
        """Removes it; what somebody else has removed already is no failure."""
        for path in self.path.glob("*"):
            if path.is_dir() and not keep_logs:
                shutil.rmtree(path, ignore_errors=True)
            elif not path.is_dir() and path.name != LOCK:
                path.unlink(missing_ok=True)
        if not keep_logs:
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._held)


def shared_path(name: str, parent: Path | None = None) -> Path:
    """The same for all who ask on this machine."""
    parents = [parent] if parent else list(_candidates())
    folder = next((each for each in parents if os.access(each, os.W_OK)), parents[-1])
    return folder / f"{PREFIX}{name}{SHARED}"


def clear(path: Path, *, keeps_itself: bool = False) -> bool:
    """Takes away what is left in a directory that nobody holds, and whoever still runs there;
    False: somebody holds it. Where there is none, there is nothing to do."""
    try:
        held = lock(path / LOCK)
    except FileNotFoundError:
        return True
    if held is None:
        return False
    try:
        for note in path.glob(f"*{PROCESS}"):
            end_orphan(note)
        for each in path.iterdir():
            if each.is_dir():
                shutil.rmtree(each, ignore_errors=True)
            elif each.name != LOCK:
                each.unlink(missing_ok=True)
        if not keeps_itself:
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(held)
    return True


def _is_private(path: Path) -> bool:
    found = path.lstat()
    is_alone = found.st_uid == os.getuid() and not found.st_mode & 0o077
    return stat.S_ISDIR(found.st_mode) and is_alone


def _is_ours(path: Path) -> bool:
    found = path.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and (path / LOCK).exists()


def sweep(parent: Path) -> list[Path]:
    """Removes what clusters left behind that were killed; returns where they were."""
    swept = []
    for path in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another sweeps it, too, or it cannot be had
            if _is_ours(path) and clear(path):
                swept.append(path)
    return swept
