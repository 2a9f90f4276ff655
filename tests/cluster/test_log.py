"""A process's log: one line a record, bounded, never what ends it."""

import contextlib
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import log
from cluster.errors import ConfigError


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for each in set(root.handlers) - set(handlers):
        with contextlib.suppress(OSError):  # its disk is full
            each.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def configured(path: Path, **more: Any) -> None:
    values = {"level": "info", "style": "text", **more}
    log.configure(values.pop("level"), values.pop("style"), path, takes_stderr=False, **values)


def test_text_has_a_line_a_record_with_its_fields(tmp_path: Path) -> None:
    configured(tmp_path / "router.log")
    logging.getLogger("one").info("two\nlines", extra={"fields": {"tokens": 3, "to": "d0"}})
    [line] = (tmp_path / "router.log").read_text().splitlines()
    time, said = line.split(" ", 1)
    assert time.endswith("Z")
    assert said == "INFO one two\\nlines tokens=3 to=d0"


def test_json_has_an_object_a_record_with_its_fields_and_traceback(tmp_path: Path) -> None:
    configured(tmp_path / "decode-0.log", style="json")
    logging.getLogger("one").log(log.REQUEST, "said %d", 1, extra={"fields": {"tokens": 3}})
    try:
        raise ValueError("broken\napart")
    except ValueError:
        logging.getLogger("two").exception("failed")
    first, second = map(json.loads, (tmp_path / "decode-0.log").read_text().splitlines())
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "request",
        "process": "decode-0",
        "logger": "one",
        "message": "said 1",
        "tokens": 3,
    }
    assert "ValueError: broken" in second["exception"]


def test_requests_have_a_level_between_what_a_process_says_and_its_warnings(tmp_path: Path) -> None:
    configured(tmp_path / "a.log", level="request")
    for level in (logging.INFO, log.REQUEST, logging.WARNING):
        logging.getLogger("x").log(level, "at %d", level)
    assert [line.split()[1] for line in (tmp_path / "a.log").read_text().splitlines()] == [
        "REQUEST",
        "WARNING",
    ]


def test_a_part_may_say_more_than_the_others_and_another_less(tmp_path: Path) -> None:
    configured(
        tmp_path / "a.log", level="warning", levels={"one.part": "debug", "one.loud": "critical"}
    )
    for name in ("one", "one.part", "one.part.of_it", "one.loud"):
        logging.getLogger(name).debug("quiet")
        logging.getLogger(name).error("loud")
    said = [line.split()[1:3] for line in (tmp_path / "a.log").read_text().splitlines()]
    assert said == [
        ["ERROR", "one"],
        ["DEBUG", "one.part"],
        ["ERROR", "one.part"],
        ["DEBUG", "one.part.of_it"],
        ["ERROR", "one.part.of_it"],
    ]


def test_a_warning_of_a_library_is_a_line_like_others(tmp_path: Path) -> None:
    configured(tmp_path / "a.log", style="json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("it is old", DeprecationWarning, stacklevel=1)
    [line] = map(json.loads, (tmp_path / "a.log").read_text().splitlines())
    assert (line["logger"], line["level"]) == ("py.warnings", "warning")
    assert "it is old" in line["message"]


def test_a_process_without_a_file_of_its_own_says_what_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/router/__main__.py"])
    log.configure("info", "json", None)
    logging.getLogger("x").info("heard")
    assert json.loads(capsys.readouterr().err)["process"] == "router"


@pytest.mark.parametrize(("level", "num_bytes"), [("loud", 1), ("info", 0)])
def test_what_is_no_level_or_no_size_is_refused(tmp_path: Path, level: str, num_bytes: int) -> None:
    with pytest.raises(ConfigError, match=r"level|log_file_bytes"):
        configured(tmp_path / "a.log", level=level, num_bytes=num_bytes)


def test_it_is_bounded_and_the_newest_is_kept(tmp_path: Path) -> None:
    configured(tmp_path / "a.log", num_bytes=2000)
    for i in range(1000):
        logging.getLogger("x").info("line %d", i)
    files = list(tmp_path.iterdir())
    assert len(files) == 1 + log.NUM_OLD
    assert sum(path.stat().st_size for path in files) <= 2000 * len(files)
    assert "line 999" in (tmp_path / "a.log").read_text()


def test_a_directory_that_cannot_be_written_any_more_keeps_it_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured(tmp_path / "a.log", num_bytes=2000)

    def refuse(*_: Any) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(os, "rename", refuse)
    for i in range(1000):
        logging.getLogger("x").info("line %d", i)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["a.log"]
    assert (tmp_path / "a.log").stat().st_size <= 2000
    assert "line 999" in (tmp_path / "a.log").read_text()


def test_where_no_file_can_be_written_it_goes_to_stderr_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    configured(tmp_path / "file" / "a.log")
    logging.getLogger("x").info("heard")
    warned, heard = capsys.readouterr().err.splitlines()
    assert "the log goes to stderr" in warned
    assert "heard" in heard


def test_a_full_disk_ends_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    configured(Path("/dev/full"))
    logging.getLogger("x").info("lost")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_what_libraries_print_to_stderr_follows_to_the_next_file(tmp_path: Path) -> None:
    code = """
import logging, os, sys
from pathlib import Path
from cluster import log
log.configure("info", "text", Path(sys.argv[1]), 300)
for i in range(20):
    os.write(2, b"native %d\\n" % i)
    logging.getLogger("x").info("line %d", i)
"""
    path = tmp_path / "a.log"
    ended = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=True)
    assert ended.stderr == b""
    assert "native 19" in path.read_text()
    assert sum(each.stat().st_size for each in tmp_path.iterdir()) < 2000
