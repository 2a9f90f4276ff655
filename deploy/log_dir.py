"""Keeps the logs of clusters after their end: a directory each under one root. The oldest go, so
that neither their number nor what they take together grows.

What `serve` runs begins one of its own each time. The processes that are placed on a machine share
theirs, by the name by which they join, and so do those that come after them.
"""

import contextlib
import os
import re
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from cluster.lock import is_locked, lock, lock_shared

LOCK = "lock"
MAX_KEPT = 20  # with the one that begins
MAX_BYTES = 512 << 20  # of those that ended
_NAME = re.compile(r"\d{8}-\d{6}-\d+")  # when it began, and the pid: in order of time


def default_log_root() -> Path:
    """Names the folder for logs of what `serve` runs, in the user's state directory. Raises OSError
    where there is none."""
    return _state_dir() / "logs"


def placed_log_root() -> Path:
    """Names the folder for logs of what is placed here: machines may share a home. Raises OSError
    where there is none."""
    return _state_dir() / "placed-logs" / socket.gethostname()


def _state_dir() -> Path:
    if state := os.environ.get("XDG_STATE_HOME"):
        return Path(state) / "penstock"
    if home := os.environ.get("HOME"):
        return Path(home) / ".local" / "state" / "penstock"
    raise FileNotFoundError("neither XDG_STATE_HOME nor HOME is set")


@contextmanager
def open_log_dir(root: Path) -> Iterator[Path]:
    """A new directory, ours until the block ends, and kept after it. Raises OSError."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = root / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}"
    path.mkdir()
    held = lock(path / LOCK)
    assert held is not None, "nobody else knows it yet"
    try:
        with contextlib.suppress(OSError):  # what cannot be cleared ends nothing
            _clear(log_dirs(root))
        yield path
    finally:
        os.close(held)


@contextmanager
def join_log_dir(root: Path, name: str) -> Iterator[Path]:
    """Opens the directory of all who join by this name, held until the block ends, and kept. Raises
    OSError."""
    path = root / name
    held = None
    while held is None:  # it may be cleared in between
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = lock_shared(path / LOCK)
    try:
        os.utime(held)
        with contextlib.suppress(OSError):
            _clear(sorted(root.iterdir(), key=_joined_at))
        yield path
    finally:
        os.close(held)


def log_dirs(root: Path) -> list[Path]:
    """Lists the logs of all clusters that `serve` ran, the oldest first."""
    with contextlib.suppress(OSError):
        return sorted(path for path in root.iterdir() if _NAME.fullmatch(path.name))
    return []


def is_written(path: Path) -> bool:
    """Tells whether the cluster runs that began it."""
    return is_locked(path / LOCK)


def _is_held(path: Path) -> bool:
    """Tells whether one holds it alone, or some share it."""
    held = lock(path / LOCK)
    if held is not None:
        os.close(held)
    return held is None


def _joined_at(path: Path) -> float:
    """Last; of what is none of ours any number: it stays."""
    try:
        return (path / LOCK).stat().st_mtime
    except OSError:
        return 0.0


def _clear(kept: Sequence[Path]) -> None:
    """The first of these first. What else lies there is somebody else's, and stays."""
    ended = [path for path in kept if (path / LOCK).is_file() and not _is_held(path)]
    sizes = {path: sum(each.stat().st_size for each in path.iterdir()) for path in ended}
    num_left = len(kept)
    for path in ended:
        if num_left <= MAX_KEPT and sum(sizes.values()) <= MAX_BYTES:
            return
        held = lock(path / LOCK)
        if held is not None:  # else it was joined just now
            shutil.rmtree(path, ignore_errors=True)
            os.close(held)
        num_left -= 1
        del sizes[path]
