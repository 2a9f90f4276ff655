"""`penstock logs`: of one process or all, in order, as they come, and after the end."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from deploy.log_dir import default_log_root, open_log_dir
from penstock.cli import logs as command
from penstock.cli.notes import LocalNote, noted, this_machine
from tests.penstock.command_line import Penstock


def at(second: int, text: str) -> str:
    return f"2026-01-01T00:00:{second:02d}.000Z INFO x {text}\n"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "PENSTOCK_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / ".local" / "state" / "penstock" / "logs"


@pytest.fixture
def folder(root: Path) -> Iterator[Path]:
    """Of a cluster that runs."""
    with open_log_dir(root) as path:
        (path / "router.log.1").write_text(at(1, "first"))
        (path / "router.log").write_text(at(4, "fourth") + "no time\n")
        (path / "decode-0.log").write_text(at(2, "second") + at(5, "fifth"))
        note = LocalNote(
            address="127.0.0.1:1",
            run_dir="/r/one",
            log_dir=str(path),
            pid=os.getpid(),
            machine=this_machine(),
        )
        with noted(note):
            yield path


def test_all_processes_are_read_together_in_order(penstock: Penstock, folder: Path) -> None:
    said = [line.split(maxsplit=1) for line in penstock("logs").out.splitlines()]
    assert [name for name, _ in said] == ["router", "decode-0", "router", "router", "decode-0"]
    assert [text.rpartition(" ")[2] for _, text in said] == [
        "first",
        "second",
        "fourth",
        "time",
        "fifth",
    ]


def test_one_process_is_read_as_it_wrote_and_only_its_last_lines(
    penstock: Penstock, folder: Path
) -> None:
    assert penstock("logs", "decode-0").out == at(2, "second") + at(5, "fifth")
    assert penstock("logs", "router", "-n", "2").out == at(4, "fourth") + "no time\n"
    assert len(penstock("logs", "-n", "0").out.splitlines()) == 5
    ended = penstock("logs", "decode-7")
    assert ended.code == 2
    assert "decode-0, router" in ended.err


def test_each_line_is_json_on_demand_and_stays_so_where_it_is(
    penstock: Penstock, folder: Path
) -> None:
    written = {"time": "2026-01-01T00:00:06.000Z", "process": "decode-0", "message": "x"}
    with (folder / "decode-0.log").open("a") as file:
        file.write(json.dumps(written) + "\n")
    said = [json.loads(line) for line in penstock("logs", "--json").out.splitlines()]
    assert said[-1] == written
    assert said[0] == {
        "time": "2026-01-01T00:00:01.000Z",
        "process": "router",
        "text": at(1, "first").strip(),
    }
    assert json.loads(penstock("logs").out.splitlines()[-1]) == written  # says whose it is


def test_what_comes_is_followed_through_rotations_until_the_end(
    penstock: Penstock, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as running:
        path = running.enter_context(open_log_dir(root))
        log = path / "router.log"
        log.write_text(at(1, "first") + "half ")

        def rotated() -> None:
            with log.open("a") as file:
                file.write("whole\n")
            log.rename(path / "router.log.1")
            log.write_text(at(2, "second"))

        def ended() -> None:
            with log.open("a") as file:
                file.write(at(3, "third"))
            running.close()

        steps = iter([rotated, ended, lambda: None])
        monkeypatch.setattr(command.time, "sleep", lambda _: next(steps)())
        said = penstock("logs", "router", "-f")
    assert said.code == 0
    assert said.out == at(1, "first") + "half whole\n" + at(2, "second") + at(3, "third")


def test_after_the_end_the_last_ones_are_shown_and_said_to_be(
    penstock: Penstock, root: Path
) -> None:
    assert penstock("logs").code == 2
    with open_log_dir(root) as path:
        (path / "router.log").write_text(at(1, "of the last"))
    ended = penstock("logs", "-f")
    assert ended.code == 0
    assert "of the last" in ended.out
    assert "the last one's" in ended.err
    ended = penstock("logs", "--log-dir", str(root / "nothing"))
    assert ended.code == 2
    assert penstock("logs", "-a", "127.0.0.1:1").code == 4


@pytest.mark.parametrize("state", ["", "state"])
def test_the_state_directory_is_that_of_the_user(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: Any
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", state and str(tmp_path / state))
    expected = tmp_path / "state" / "penstock" / "logs" if state else root
    assert default_log_root() == expected


def test_the_variable_names_the_cluster_as_the_flag_does(
    penstock: Penstock, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_ADDRESS", "127.0.0.1:1")
    assert "first" in penstock("logs").out
    monkeypatch.setenv("PENSTOCK_ADDRESS", "127.0.0.1:9")
    ended = penstock("logs")
    assert ended.code == 4
    assert "127.0.0.1:9" in ended.err
    assert "first" in penstock("logs", "--log-dir", str(folder.parent)).out


@pytest.mark.parametrize(
    "where",
    [
        ("--log-dir", "x", "--cluster", "chat"),
        ("--log-dir", "x", "--ray", "a:1"),
        ("--log-dir", "x", "-a", "a:1"),
        ("-a", "a:1", "--cluster", "chat"),
        ("-a", "a:1", "--ray", "a:1"),
    ],
)
def test_two_places_to_read_in_are_one_too_many(penstock: Penstock, where: tuple[str, ...]) -> None:
    ended = penstock("logs", *where)
    assert ended.code == 2
    assert "one of --address, --log-dir, and --cluster or --ray" in ended.err
