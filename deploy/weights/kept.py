"""Weights that lie in this user's cache, who uses them, and their end: those that no process uses
make way, the longest unused first, where a pull has no room.

Who loses a directory loses nothing that cannot be pulled again. Directories that a file names
as 'checkpoint' are none of ours, and are never touched.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cluster.errors import WeightsError
from cluster.lock import lock, lock_shared
from deploy.weights.manifest import PARTIAL
from deploy.weights.origin import Weights, cached_weights, kept_in

LOCK: Final = ".lock"  # of who pulls
USED: Final = ".used"  # held by who uses them, and touched
_GONE: Final = ".gone"  # being taken away, or what was left of that
_KEPT: Final = re.compile(r"([0-9a-f]{64})(\.partial|\.gone)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptWeights:
    """Weights of one digest in the cache, whole or begun."""

    folder: Path
    name: str  # the digest's hexadecimal digits
    num_bytes: int
    used_at: float  # seconds since 1970
    is_whole: bool
    is_used: bool  # or being pulled

    @property
    def digest(self) -> str:
        return f"sha256:{self.name}"


def kept() -> list[KeptWeights]:
    """Lists them, the longest unused first. Raises OSError."""
    folder = cached_weights()
    if folder is None or not folder.is_dir():
        return []
    names = {found[1] for path in folder.iterdir() if (found := _KEPT.fullmatch(path.name))}
    return sorted((_kept(folder, name) for name in names), key=lambda each: each.used_at)


def hold(weights: Weights, directory: str = "") -> int | None:
    """Keeps them where they are, pulled or not yet, until the process ends or closes what this
    returns; None: they do not lie in the cache. Raises WeightsError."""
    if directory:
        return None
    there = kept_in(weights)
    try:
        there.parent.mkdir(parents=True, exist_ok=True)
        held = lock_shared(_of(there, USED))
        os.utime(_of(there, USED))
    except OSError as error:
        raise WeightsError(f"The weights cannot be kept in {there}: {error}.") from error
    return held


def remove(each: KeptWeights) -> bool:
    """Takes them away; False: somebody uses or pulls them. What breaks off goes on with the next
    call. Raises OSError."""
    there = each.folder / each.name
    with _alone(_of(there, LOCK)) as is_unpulled, _alone(_of(there, USED)) as is_unused:
        if not (is_unpulled and is_unused):
            return False
        gone = _of(there, _GONE)
        for path in (_of(there, PARTIAL), there):
            shutil.rmtree(gone, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):
                path.rename(gone)  # at once: nobody finds half of it
        shutil.rmtree(gone, ignore_errors=True)
        return True


def make_room(folder: Path, num_bytes: int, say: Callable[[str], object]) -> None:
    """Removes what nobody uses from the cache, if that is the folder, until so many bytes are free
    there; nothing, where all of it would not do. Raises OSError."""
    if folder != cached_weights() or (free := shutil.disk_usage(folder).free) >= num_bytes:
        return
    unused = [each for each in kept() if not each.is_used]
    if free + sum(each.num_bytes for each in unused) < num_bytes:
        return
    for each in unused:
        if shutil.disk_usage(folder).free >= num_bytes:
            return
        if remove(each):
            say(f"{each.digest}, of {each.num_bytes / 1e6:,.0f} MB, made way: nobody uses it here.")


def _kept(folder: Path, name: str) -> KeptWeights:
    there = folder / name
    return KeptWeights(
        folder=folder,
        name=name,
        num_bytes=sum(map(_bytes_in, (there, _of(there, PARTIAL), _of(there, _GONE)))),
        used_at=max(map(_changed_at, (_of(there, USED), there, _of(there, PARTIAL)))),
        is_whole=there.is_dir(),
        is_used=_is_held(_of(there, USED)) or _is_held(_of(there, LOCK)),
    )


def _of(directory: Path, suffix: str) -> Path:
    return directory.with_name(directory.name + suffix)


def _bytes_in(directory: Path) -> int:
    found = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # it is being pulled, or taken away
            found += path.lstat().st_size
    return found


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Yields whether nobody else holds it; until then nobody does."""
    held = lock(path)
    try:
        yield held is not None
    finally:
        if held is not None:
            os.close(held)


def _is_held(path: Path) -> bool:
    """Tells it of who shares it as well."""
    if not path.exists():
        return False
    with _alone(path) as is_free:
        return not is_free
