"""Pulls the weights of a model onto this machine, once: whoever comes second waits, and finds them.

Files grow in `DIRECTORY.partial`, each as `NAME.partial` until it is whole and its digest right;
the directory gets its name when all are. A pull that broke off anywhere goes on where it was.
"""

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from cluster.errors import WeightsBrokenOff, WeightsError
from cluster.lock import lock, lock_alone
from deploy.weights.kept import LOCK, make_room
from deploy.weights.manifest import (
    MAX_MANIFEST_BYTES,
    NAME,
    PARTIAL,
    Manifest,
    Which,
    digest_of,
    every,
    holds,
    read_list,
)
from deploy.weights.origin import Weights
from deploy.weights.progress import PullProgress
from deploy.weights.source import WeightsSource

NUM_STREAMS: Final = 8  # files at a time: one connection seldom fills a machine's link
WINDOW_BYTES: Final = 64 << 20  # of one request
SAY_S: Final = 5.0  # between two lines
PAUSES_S: Final = (0.2, 1.0, 5.0, 15.0, 30.0)  # after tries that brought nothing; then it ends
_READ_BYTES: Final = 1 << 20

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class LackingFile:
    """It is to come."""

    name: str
    digest: str
    num_bytes: int


def pull(
    weights: Weights,
    directory: Path,
    *,
    say: Say,
    is_wanted: Which = every,
) -> None:
    """Returns when they are in the directory, which is then never touched again. Raises
    WeightsError; the same call goes on later."""
    try:
        if holds(directory, weights, is_wanted):
            return
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _alone(_beside(directory, LOCK), say):
            if not holds(directory, weights, is_wanted):
                _pull(weights, directory, say, is_wanted)
                say(f"The weights are in {directory}.")
    except OSError as error:
        raise WeightsError(f"The weights cannot be kept in {directory}: {error}.") from error


def _beside(directory: Path, suffix: str) -> Path:
    return directory.with_name(directory.name + suffix)


@contextmanager
def _alone(path: Path, say: Say) -> Iterator[None]:
    """Admits one process of this machine at a time."""
    held = lock(path)
    if held is None:
        say("The weights are being pulled by another process of this machine: waiting for it.")
        held = lock_alone(path)
    try:
        yield
    finally:
        os.close(held)


def _pull(weights: Weights, directory: Path, say: Say, is_wanted: Which) -> None:
    source = WeightsSource(weights.url)
    manifest = _manifest(source, weights.digest)
    staging = _beside(directory, PARTIAL)
    _begin(staging, manifest)
    names = [name for name in manifest.files if is_wanted(name)]
    fetching = Fetching(source, staging)
    fetching.all_of(manifest, names, say)
    for path in {staging / NAME, staging, *(staging.joinpath(name).parent for name in names)}:
        _sync(path)
    staging.replace(directory)
    _sync(directory.parent)


def _manifest(source: WeightsSource, wanted: str) -> Manifest:
    try:
        text = source.whole(NAME, MAX_MANIFEST_BYTES)
    except WeightsBrokenOff:
        raise
    except WeightsError as error:
        raise WeightsError(
            f"{error.message} A source of weights has a {NAME}: 'penstock weights digest DIR'"
            " writes it."
        ) from error
    if (found := digest_of(text)) != wanted:
        raise WeightsError(
            f"The {NAME} at {source.url} has the digest {found}, and wanted is {wanted}: give the"
            " place that has those weights, or the other digest."
        )
    return Manifest.parse(text, f"{source.url}/{NAME}")


def _begin(staging: Path, manifest: Manifest) -> None:
    """Removes what is left of other weights, but not what is nobody's pull."""
    staging.mkdir(exist_ok=True)
    if any(staging.iterdir()):
        try:
            if read_list(staging) == manifest.text:
                return
        except FileNotFoundError:
            raise WeightsError(
                f"{staging} holds no {NAME}, so it is no pull that broke off: take it away."
            ) from None
        _clear(staging)
    (staging / NAME).write_bytes(manifest.text)


def _clear(staging: Path) -> None:
    """The list stays until it is written anew: it says whose the rest is."""
    for path in staging.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != NAME:
            path.unlink()


def _sync(path: Path) -> None:
    """Makes what was written to it, or renamed in it, stay so."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(slots=True, eq=False)
class Fetching:
    """Several files at a time, until all are here or one does not come."""

    source: WeightsSource
    staging: Path
    progress: PullProgress = field(default_factory=PullProgress)
    _stop: threading.Event = field(default_factory=threading.Event)

    def all_of(self, manifest: Manifest, names: Sequence[str], say: Say) -> None:
        done = [name for name in names if (self.staging / name).is_file()]
        lacking = [name for name in names if name not in {*done}]
        with ThreadPoolExecutor(NUM_STREAMS, "weights") as threads:
            sizes = list(threads.map(self.source.size, lacking))
            parts = [
                LackingFile(name, manifest.files[name], size)
                for name, size in zip(lacking, sizes, strict=True)
            ]
            here = sum(self._num_here(part) for part in parts)
            missing = sum(sizes) - here
            make_room(self.staging.parent, missing, say)
            self._check_room(missing)
            here += sum((self.staging / name).stat().st_size for name in done)
            self.progress.begin(here, here + missing)
            say(f"Pulling weights from {self.source.url}: {self.progress.line()}")
            self._wait([threads.submit(self._fetch, part) for part in parts], say)

    def _wait(self, fetches: Sequence[Future[None]], say: Say) -> None:
        pending = set(fetches)
        try:
            while pending:
                done, pending = wait(pending, timeout=SAY_S, return_when=FIRST_EXCEPTION)
                for each in done:
                    each.result()
                say(f"Pulling weights: {self.progress.line()}")
        finally:
            self._stop.set()
            for each in pending:
                each.cancel()

    def _check_room(self, num_bytes: int) -> None:
        free = shutil.disk_usage(self.staging).free
        if num_bytes > free:
            raise WeightsError(
                f"The weights take {num_bytes / 1e6:,.0f} MB more in {self.staging.parent}, and"
                f" {free / 1e6:,.0f} MB are free: make room, or give a directory on another disk as"
                " 'checkpoint'."
            )

    def _partial(self, part: LackingFile) -> Path:
        return self.staging / (part.name + PARTIAL)

    def _num_here(self, part: LackingFile) -> int:
        """Bytes of it that came before; what is more than it has is none of it."""
        try:
            here = self._partial(part).stat().st_size
        except FileNotFoundError:
            return 0
        return here if here <= part.num_bytes else 0

    def _fetch(self, part: LackingFile) -> None:
        path = self._partial(part)
        path.parent.mkdir(exist_ok=True)
        begun = self._num_here(part)
        digest = hashlib.sha256()
        with path.open("a+b") as file:
            file.truncate(begun)
            file.seek(0)
            while data := file.read(_READ_BYTES):
                digest.update(data)
            self._fill(file, digest.update, part, begun)
            file.flush()
            os.fsync(file.fileno())
        if (found := digest.hexdigest()) != part.digest:
            path.unlink()
            raise WeightsError(
                f"{self.source.url}/{part.name} has the digest sha256:{found}, and {NAME} says"
                f" sha256:{part.digest}: what came was taken away. Put the right file there."
            )
        path.replace(self.staging / part.name)

    def _fill(
        self, file: BinaryIO, hear: Callable[[bytes], None], part: LackingFile, begun: int
    ) -> None:
        """Raises WeightsBrokenOff after as many tries as there are pauses brought nothing more."""
        here, pauses = begun, iter(PAUSES_S)
        while here < part.num_bytes:
            before, end = here, min(here + WINDOW_BYTES, part.num_bytes)
            try:
                for piece in self.source.read(part.name, here, end):
                    file.write(piece)
                    hear(piece)
                    here += len(piece)
                    self.progress.add(len(piece))
                    if self._stop.is_set():
                        raise WeightsError("Another file did not come.")
                if here == before:
                    raise WeightsBrokenOff(f"{self.source.url}/{part.name} ends at byte {here}.")
            except WeightsBrokenOff:
                pauses = iter(PAUSES_S) if here > before else pauses
                if (pause_s := next(pauses, None)) is None or self._stop.wait(pause_s):
                    raise
