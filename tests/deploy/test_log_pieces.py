"""Logs a piece at a time: nothing twice, nothing passed over, however the files move."""

from pathlib import Path

import pytest

from deploy import log_pieces as module
from deploy.log_pieces import Mark, Piece, PiecesAsked, as_json, pieces


class Reader:
    """Remembers how far it is, as who reads from elsewhere does."""

    def __init__(self, folder: Path, **said: int) -> None:
        self._folder = folder
        self._asked = said
        self._marks: dict[str, Mark] = {}

    def read(self) -> str:
        """All that is new, of all logs."""
        found, has_more = "", True
        while has_more:
            asked = PiecesAsked.from_json(PiecesAsked(marks=self._marks, **self._asked).as_json())
            told = Piece.from_json(as_json(pieces(self._folder, asked)))
            self._marks |= {piece.log: piece.mark for piece in told}
            found += "".join(piece.text for piece in told)
            has_more = any(piece.has_more for piece in told)
        return found


def log(folder: Path) -> Path:
    return folder / "a.log"


def test_what_is_new_is_told_once_and_a_half_line_when_it_is_whole(tmp_path: Path) -> None:
    log(tmp_path).write_text("one\ntw")
    reader = Reader(tmp_path)
    assert reader.read() == "one\n"
    with log(tmp_path).open("a") as file:
        file.write("o\nthree\n")
    assert reader.read() == "two\nthree\n"
    assert reader.read() == ""


def test_rotations_are_followed_and_an_emptied_file_is_read_anew(tmp_path: Path) -> None:
    log(tmp_path).write_text("one\n")
    reader = Reader(tmp_path)
    assert reader.read() == "one\n"
    with log(tmp_path).open("a") as file:
        file.write("two\nand no end")
    for number in (2, 1):
        log(tmp_path).rename(tmp_path / f"a.log.{number}")
        log(tmp_path).write_text(f"after {number}\n")
    assert reader.read() == "two\nand no endafter 2\nafter 1\n"
    log(tmp_path).write_text("new\n")
    assert reader.read() == "new\n"


@pytest.mark.parametrize(
    ("num_lines", "expected"),
    [(1, "4\n"), (2, "3\n4\n"), (3, "2\n3\n4\n"), (9, "1\n2\n3\n4\n"), (0, "1\n2\n3\n4\n")],
)
def test_the_last_lines_begin_in_whichever_file_they_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_lines: int, expected: str
) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", 3)
    (tmp_path / "a.log.1").write_text("1\n2\n")
    log(tmp_path).write_text("3\n4\n")
    assert Reader(tmp_path, num_lines=num_lines).read() == expected


def test_pieces_are_bounded_and_together_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", 10)
    monkeypatch.setattr(module, "ANSWER_BYTES", 15)
    lines = [f"{number}\n" for number in range(20)]
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.log").write_text("".join(lines) + "longer than a piece\n")
    told = pieces(tmp_path, PiecesAsked())
    assert [len(piece.text) for piece in told] == [10, 4, 1]
    assert all(piece.has_more for piece in told)
    monkeypatch.setattr(module, "ANSWER_BYTES", 10)
    assert [len(piece.text) for piece in pieces(tmp_path, PiecesAsked())] == [10, 0, 0]
    read = Reader(tmp_path).read()
    assert sorted(read) == sorted(3 * ("".join(lines) + "longer than a piece\n"))


def test_one_process_or_one_log_may_be_asked_for(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.log").write_text(f"{name}\n")
    [piece] = pieces(tmp_path, PiecesAsked(process="b"))
    assert (piece.process, piece.text) == ("b", "b\n")
    [again] = pieces(tmp_path, PiecesAsked(log=piece.log))
    assert again == piece


def test_an_answer_is_bounded_in_bytes_and_no_letter_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", 10)
    monkeypatch.setattr(module, "ANSWER_BYTES", 15)
    line = "\N{OIL DRUM}" * 7 + "\n"  # four bytes a letter
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.log").write_text(line)
    told = pieces(tmp_path, PiecesAsked())
    assert [len(piece.text.encode()) for piece in told] == [8, 4, 0]
    assert sorted(Reader(tmp_path).read()) == sorted(3 * line)


def test_what_a_killed_process_cut_off_is_told_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.log.1").write_bytes(b"cut off: \xf0\x9f")
    log(tmp_path).write_text("next\n")
    assert Reader(tmp_path).read() == "cut off: \ufffdnext\n"
