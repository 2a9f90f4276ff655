"""Tells a folder's logs, a bounded piece at a time: who asks says how far it has read, and nothing
is held for it in between. Each process rotates its own file: NAME.log, NAME.log.1 and so on, the
oldest last.
"""

import json
import os
import socket
from codecs import getincrementaldecoder
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

PIECE_BYTES: Final = 256 << 10  # of one log in one answer; a longer line is told in parts
ANSWER_BYTES: Final = 4 << 20  # of all
_BLOCK_BYTES: Final = 64 << 10


class Mark(NamedTuple):
    """Marks how far a log has been read."""

    file: int  # its inode: it keeps it when it is rotated
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PiecesAsked:
    """Says which logs are asked for, from where."""

    process: str = ""  # of this one only; empty: of all
    num_lines: int = 0  # of a log without a mark so many of the last; 0: all
    marks: Mapping[str, Mark] = field(default_factory=dict)  # by log
    log: str = ""  # of this log only; empty: of all

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "PiecesAsked":
        said = json.loads(text)
        return cls(**{**said, "marks": {log: Mark(*mark) for log, mark in said["marks"].items()}})


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Whole lines of one log, as far as there are any."""

    log: str  # which one, wherever it is asked for
    process: str
    text: str
    mark: Mark  # of what comes next
    has_more: bool

    @classmethod
    def from_json(cls, text: str) -> "list[Piece]":
        return [cls(**{**said, "mark": Mark(*said["mark"])}) for said in json.loads(text)]


def as_json(pieces: Sequence[Piece]) -> str:
    return json.dumps(list(map(asdict, pieces)))


def pieces(folder: Path, asked: PiecesAsked) -> list[Piece]:
    """One of each log there, also where nothing is new."""
    return list(_pieces(folder, asked))


def processes(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.log"))


def _pieces(folder: Path, asked: PiecesAsked) -> Iterator[Piece]:
    left = ANSWER_BYTES
    for process in processes(folder):
        log = f"{_identity(folder)}/{process}"
        if asked.process in ("", process) and asked.log in ("", log):
            with _opened(folder, process) as files:
                mark = asked.marks.get(log) or _start(files, asked.num_lines)
                data, mark, has_more = _read(files, mark, min(left, PIECE_BYTES))
            left -= len(data)
            text = data.decode(errors="replace")
            yield Piece(log=log, process=process, text=text, mark=mark, has_more=has_more)


def _identity(folder: Path) -> str:
    """Names the folder itself, whoever looks into it and under whatever name."""
    found = folder.stat()
    return f"{socket.gethostname()}:{found.st_dev}:{found.st_ino}"


@contextmanager
def _opened(folder: Path, process: str) -> Iterator[list[BinaryIO]]:
    """The oldest first. The youngest is opened first: one that is rotated meanwhile is found twice,
    not passed over."""
    files: dict[int, BinaryIO] = {}
    with ExitStack() as until_read:
        for path in [folder / f"{process}.log", *sorted(folder.glob(f"{process}.log.*"))]:
            with suppress(OSError):
                file = until_read.enter_context(path.open("rb"))
                files.setdefault(_inode(file), file)
        yield list(reversed(files.values()))


def _start(files: Sequence[BinaryIO], num_lines: int) -> Mark:
    """Marks the place before the last so many lines; 0: before all."""
    if not num_lines:
        return Mark(0, 0)  # no file's: it is read from the oldest on
    wanted, start = num_lines, Mark(0, 0)
    for file in reversed(files):
        offset, found = _before_lines(file, wanted)
        start = Mark(_inode(file), offset)
        wanted -= found
        if wanted <= 0:
            break
    return start


def _before_lines(file: BinaryIO, wanted: int) -> tuple[int, int]:
    """Finds where the last of them begin, and how many of them are in this file."""
    end, found = file.seek(0, os.SEEK_END), 0
    while end > 0:
        begin = max(0, end - _BLOCK_BYTES)
        file.seek(begin)
        block = file.read(end - begin)
        at = len(block)
        # The first of these lines begins after the end of the line before it.
        while (at := block.rfind(b"\n", 0, at)) >= 0:
            if found == wanted:
                return begin + at + 1, wanted
            found += 1
        end = begin
    return 0, found


def _read(files: Sequence[BinaryIO], mark: Mark, num_bytes: int) -> tuple[bytes, Mark, bool]:
    """Reads on from the mark, through younger files; tells whether there is more."""
    begun = next((i for i, file in enumerate(files) if _inode(file) == mark.file), None)
    offset = mark.offset if begun is not None else 0
    for file in files[begun or 0 :]:
        if os.fstat(file.fileno()).st_size < offset:  # it was emptied
            offset = 0
        file.seek(offset)
        data = file.read(num_bytes)
        is_last, is_all = file is files[-1], len(data) < num_bytes
        whole = data[: data.rfind(b"\n") + 1]
        told = whole or _unended(data, is_all=is_all, is_last=is_last)
        mark = Mark(_inode(file), offset + len(told))
        if told or not is_all:
            return told, mark, not (is_last and is_all)
        offset = 0
    return b"", mark, False


def _unended(data: bytes, *, is_all: bool, is_last: bool) -> bytes:
    """Gives what to tell of a line without its end. One that is being written waits until it is
    whole; of one cut off nothing more comes; one longer than a piece is told in parts."""
    if not is_all:
        return _whole_letters(data)
    return b"" if is_last else data


def _whole_letters(data: bytes) -> bytes:
    """Cuts off the beginning of a letter of which the rest comes in the next piece."""
    decoder = getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return data[: len(data) - len(decoder.getstate()[0])]


def _inode(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_ino
