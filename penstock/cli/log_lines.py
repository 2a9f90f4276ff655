"""The lines of a cluster's logs, of one process or of all in the order of time, as they are and as
they come. Each process rotates its own file: NAME.log, NAME.log.1 and so on, the oldest last."""

import heapq
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

_TIME = re.compile(r'(?:\{"time": ")?(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z)')


class Line(NamedTuple):
    time: str  # ISO 8601, UTC: in order as text; of a line without one, that of the line before
    process: str
    text: str

    def told(self, *, with_process: bool) -> str:
        """A line of JSON says whose it is."""
        is_marked = with_process and not self.text.startswith("{")
        return f"{self.process:<10} {self.text}" if is_marked else self.text

    def as_json(self) -> str:
        """As it is, where it is JSON already."""
        with suppress(ValueError):
            if isinstance(json.loads(self.text), dict):
                return self.text
        return json.dumps(self._asdict(), ensure_ascii=False)


def processes(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.log"))


class LogFile:
    """One process's log, read to its end so far, again and again. `with` closes it."""

    def __init__(self, folder: Path, process: str) -> None:
        self._process = process
        self._path = folder / f"{process}.log"
        self._old = sorted(folder.glob(f"{process}.log.*"), reverse=True)
        self._file: BinaryIO | None = None
        self._half = b""  # a line that is being written
        self._time = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def lines(self) -> Iterator[Line]:
        """What has been written since the last call; at first all that there is."""
        for path in self._old:
            with suppress(OSError):
                yield from self._read(path.read_bytes())
        self._old = []
        while True:
            if self._file is None:
                try:
                    self._file = self._path.open("rb")
                except OSError:
                    return
            yield from self._read(self._file.read())
            if not self._is_rotated(self._file):
                return
            yield from self._read(self._file.read())  # what came between the two looks
            self._file.close()
            self._file = None

    def _is_rotated(self, file: BinaryIO) -> bool:
        """Whether another file has the name now, or the same was emptied."""
        try:
            now, ours = self._path.stat(), os.fstat(file.fileno())
        except OSError:
            return False
        return not os.path.samestat(now, ours) or now.st_size < file.tell()

    def _read(self, data: bytes) -> Iterator[Line]:
        *whole, self._half = (self._half + data).split(b"\n")
        for line in whole:
            text = line.decode(errors="replace")
            if found := _TIME.match(text):
                self._time = found[1]
            yield Line(self._time, self._process, text)


def in_order(logs: Sequence[LogFile]) -> Iterable[Line]:
    return heapq.merge(*(log.lines() for log in logs), key=attrgetter("time"))
