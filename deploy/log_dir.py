"""Where the logs of clusters stay after their end: a directory each under one root. The oldest go,
so that neither their number nor what they take together grows."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from cluster.lock import is_locked, lock

LOCK = "lock"
MAX_KEPT = 20  # with the one that begins
MAX_BYTES = 512 << 20  # of those that ended
_NAME = re.compile(r"\d{8}-\d{6}-\d+")  # when it began, and the pid: in order of time


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
            _clear(root)
        yield path
    finally:
        os.close(held)


def log_dirs(root: Path) -> list[Path]:
    """Of all clusters whose logs are kept, the oldest first."""
    with contextlib.suppress(OSError):
        return sorted(path for path in root.iterdir() if _NAME.fullmatch(path.name))
    return []


def is_written(path: Path) -> bool:
    """Whether its cluster runs."""
    return is_locked(path / LOCK)


def _clear(root: Path) -> None:
    """What else lies there is somebody else's, and stays."""
    kept = log_dirs(root)
    ended = [path for path in kept if (path / LOCK).is_file() and not is_written(path)]
    sizes = {path: sum(each.stat().st_size for each in path.iterdir()) for path in ended}
    num_left = len(kept)
    for path in ended:
        if num_left <= MAX_KEPT and sum(sizes.values()) <= MAX_BYTES:
            return
        shutil.rmtree(path, ignore_errors=True)
        num_left -= 1
        del sizes[path]
