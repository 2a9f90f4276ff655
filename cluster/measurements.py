"""Remembers what was timed on this machine, for the processes that come after.

A take is a table of seconds. Takes of one name are joined by their minima: whatever else runs
only ever adds to them. One that was taken under load serves, but the next who asks takes
another, up to so many. Knows nothing of what was timed, nor what is concluded from it.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster import host
from cluster.lateness import Limit
from cluster.lock import lock

Timings = Mapping[str, Sequence[float]]  # by candidate: seconds, case by case

MAX_TAKES = 3  # under load; joined they are good enough
MAX_WAITED = 0.05  # of a take, that one of its threads waits for a processor, or loses one
TURN_S = 10.0  # for another process's take; then one goes ahead beside it
LOOK_S = 0.02
MAX_FILE_BYTES = 1 << 20
MAX_NAMES = 512

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    seconds: Timings
    num_takes: int = 1
    was_quiet: bool

    @property
    def is_final(self) -> bool:
        return self.was_quiet or self.num_takes >= MAX_TAKES

    def joined(self, other: "Take") -> "Take":
        """A candidate or a case that only one of them has stays as it is."""
        names = [*self.seconds, *(name for name in other.seconds if name not in self.seconds)]
        return Take(
            seconds={
                name: _minima(self.seconds.get(name, ()), other.seconds.get(name, ()))
                for name in names
            },
            num_takes=self.num_takes + other.num_takes,
            was_quiet=self.was_quiet or other.was_quiet,
        )


class Measurements:
    """One process's access to them. `choices` is what it made of them, for people to read."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` is made where it is missing; None, or one that cannot be written: nothing is
        remembered beyond this process."""
        self.choices: dict[str, str] = {}
        self._folder = folder
        self._own: dict[str, Take] = {}

    def take(self, name: str, measure: Callable[[], Timings], *, turn_s: float = TURN_S) -> Take:
        """Gives the take of `name`; measures first, unless a final one is remembered. One process
        measures at a time: the others wait for it, `turn_s` at most."""
        known = self._known(name)
        if known is not None and known.is_final:
            return known
        with self._turn(turn_s):
            known = self._known(name)  # whose turn was before ours may have asked the same
            if known is None or not known.is_final:
                fresh = _taken(measure)
                known = fresh if known is None else known.joined(fresh)
                self._keep(name, known)
        return known

    def _known(self, name: str) -> Take | None:
        return self._read().get(name) or self._own.get(name)

    def _keep(self, name: str, take: Take) -> None:
        self._own[name] = take
        if self._folder is None:
            return
        takes = self._read()
        takes.pop(name, None)
        takes[name] = take
        newest = list(takes.items())[-MAX_NAMES:]
        text = json.dumps({each: asdict(one) for each, one in newest}, indent=1)
        path = self._path("json")
        try:
            fresh = path.with_suffix(f".{os.getpid()}")
            fresh.write_text(text + "\n", encoding="utf-8")
            fresh.replace(path)
        except OSError as error:
            logger.debug("Measurements are not remembered: %s", error)

    def _read(self) -> dict[str, Take]:
        """Reads what is remembered: what does not look like ours is as good as nothing."""
        if self._folder is None:
            return {}
        try:
            with self._path("json").open("rb") as file:
                found = json.loads(file.read(MAX_FILE_BYTES))
            return {name: _parsed(take) for name, take in found.items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    @contextlib.contextmanager
    def _turn(self, limit_s: float) -> Iterator[None]:
        held = self._locked(limit_s)
        try:
            yield
        finally:
            if held is not None:
                os.close(held)

    def _locked(self, limit_s: float) -> int | None:
        if self._folder is None:
            return None
        limit = Limit(limit_s)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            while (held := lock(self._path("lock"))) is None:
                time.sleep(min(LOOK_S, limit.pause_s()))
        except OSError:  # the time is over, or a file system without locks
            return None
        return held

    def _path(self, suffix: str) -> Path:
        """A home may be shared by machines that are not alike."""
        assert self._folder is not None
        mark = hashlib.sha256(host.processor().encode()).hexdigest()[:16]
        return self._folder / f"measured-{mark}.{suffix}"


def _taken(measure: Callable[[], Timings]) -> Take:
    began, waited_s = time.perf_counter(), host.waited_s()
    seconds = measure()
    waited_s = host.waited_s() - waited_s
    was_quiet = waited_s <= MAX_WAITED * (time.perf_counter() - began)
    return Take(seconds=seconds, was_quiet=was_quiet)


def _minima(one: Sequence[float], other: Sequence[float]) -> list[float]:
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    return [*map(min, longer, shorter), *longer[len(shorter) :]]


def _parsed(take: Any) -> Take:
    """Raises ValueError, TypeError or KeyError for what is none."""
    seconds = {str(name): [float(each) for each in row] for name, row in take["seconds"].items()}
    times = [each for row in seconds.values() for each in row]
    if not all(seconds.values()) or not all(math.isfinite(each) and each > 0 for each in times):
        raise ValueError("every candidate has times, and they are positive")
    return Take(
        seconds=seconds, num_takes=int(take["num_takes"]), was_quiet=bool(take["was_quiet"])
    )
