"""The lines of a cluster's logs, of one process or of all in the order of time, as they are and as
they come. Whoever has the logs is asked for a bounded piece of each at a time."""

import heapq
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from operator import attrgetter
from typing import NamedTuple

from deploy.log_pieces import Mark, Piece, PiecesAsked

_TIME = re.compile(r'(?:\{"time": ")?(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z)')

Ask = Callable[[PiecesAsked], list[Piece]]


class LogLine(NamedTuple):
    time: str  # ISO 8601, UTC: in order as text; of a line without one, that of the line before
    process: str
    text: str

    def told(self, *, with_process: bool) -> str:
        """A line of JSON says whose it is."""
        is_marked = with_process and not self.text.startswith("{")
        return f"{self.process:<10} {self.text}" if is_marked else self.text

    def as_json(self) -> str:
        """Leaves the line as it is, where it is JSON already."""
        with suppress(ValueError):
            if isinstance(json.loads(self.text), dict):
                return self.text
        return json.dumps(self._asdict(), ensure_ascii=False)


class Logs:
    """Read to their end so far, again and again."""

    def __init__(self, ask: Ask, *, process: str = "", num_lines: int = 0) -> None:
        """`process`: of this one only; `num_lines`: at first the last of each; 0: all."""
        self._ask = ask
        self._asked = PiecesAsked(process=process, num_lines=num_lines)
        self._marks: dict[str, Mark] = {}
        self._times: dict[str, str] = {}  # of the last line, by log

    def lines(self) -> Iterable[LogLine]:
        """Reads what has been written since the last call."""
        heads = self._ask(replace(self._asked, marks=dict(self._marks)))
        return heapq.merge(*map(self._lines_from, heads), key=attrgetter("time"))

    def _lines_from(self, piece: Piece) -> Iterator[LogLine]:
        log, following = piece.log, [piece]
        for each in following:
            yield from self._cut(each)
            self._marks[log] = each.mark
            if each.has_more:
                asked = replace(self._asked, marks={log: each.mark}, log=log)
                following += self._ask(asked)

    def _cut(self, piece: Piece) -> Iterator[LogLine]:
        for text in piece.text.removesuffix("\n").split("\n") if piece.text else ():
            if found := _TIME.match(text):
                self._times[piece.log] = found[1]
            yield LogLine(self._times.get(piece.log, ""), piece.process, text)
