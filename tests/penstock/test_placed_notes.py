"""Commands find a cluster that `penstock up` brought up elsewhere, by the note that it left."""

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.cli.exit_codes import CommandError, ExitCode
from penstock.cli.local import (
    find_address,
    find_cluster,
    is_found,
    known_at,
    known_cluster,
    need_note,
    need_secrets,
)
from penstock.cli.notes import LocalNote, noted, this_machine
from penstock.cli.placed_notes import PlacedNote, forget, leave, placed
from tests.penstock.command_line import Penstock


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("PENSTOCK_ADDRESS", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # where others leave notes, too
    return tmp_path


@pytest.fixture
def listener() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def note_of(name: str, *routers: str, internal: tuple[str, ...] = ()) -> PlacedNote:
    return PlacedNote(
        name=name,
        model="m",
        routers=routers,
        internal=internal or routers,
        secrets_file=f"/etc/{name}.yaml",
    )


def test_a_note_is_replaced_and_forgotten(home: Path) -> None:
    assert placed() == []
    leave(note_of("chat", "a:1"), "")
    leave(note_of("chat", "a:2"), "")
    assert placed() == [note_of("chat", "a:2")]
    broken = home / ".penstock" / "placed" / "broken.json"
    broken.write_text("{")
    assert placed() == [note_of("chat", "a:2")]
    forget("chat")
    forget("chat")
    assert placed() == []
    leave(note_of("chat", "a:1"), "its file")
    (home / ".penstock" / "placed" / "chat.json").unlink()  # as who was killed between the two
    forget("chat")
    assert [*(home / ".penstock" / "placed").iterdir()] == [broken]


def test_the_router_that_answers_is_asked(listener: str) -> None:
    leave(note_of("chat", "127.0.0.1:1", listener), "")
    assert find_address(None) == listener
    assert need_secrets(None, listener) == Path("/etc/chat.yaml")


def test_operators_go_where_calls_of_the_cluster_come_in(listener: str) -> None:
    """The front door may be open on its own machine alone."""
    leave(note_of("chat", "127.0.0.1:1", "127.0.0.1:1", internal=("127.0.0.1:2", listener)), "")
    assert find_cluster(None, None) == (listener, Path("/etc/chat.yaml"))
    assert find_address(None) == "127.0.0.1:1"
    mine = Path("mine.yaml")
    assert find_cluster("a:1", mine) == ("a:1", mine)


def test_what_nobody_took_down_is_named_only_where_nothing_else_is_known(listener: str) -> None:
    leave(note_of("gone", "127.0.0.1:1"), "")
    assert find_address(None) == "127.0.0.1:1"
    leave(note_of("chat", listener), "")
    assert find_address(None) == listener


def test_several_are_told_apart(listener: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        second = f"127.0.0.1:{server.getsockname()[1]}"
        leave(note_of("chat", listener), "")
        leave(note_of("code", second), "")
        with pytest.raises(CommandError, match="name one with --address") as told:
            find_address(None)
    assert f"{second}  code" in told.value.message


def test_what_only_a_local_cluster_has_is_refused_with_the_way(listener: str) -> None:
    leave(note_of("chat", listener), "")
    with pytest.raises(CommandError, match="'penstock down chat' ends it") as told:
        need_note(listener, "")
    assert told.value.code is ExitCode.USAGE


def test_one_that_runs_here_goes_before_a_note_that_may_be_out_of_date(tmp_path: Path) -> None:
    here = LocalNote(
        address="127.0.0.1:1",
        run_dir=str(tmp_path / "run"),
        pid=os.getpid(),
        machine=this_machine(),
    )
    leave(note_of("gone", here.address), "")
    assert known_at(here.address) == note_of("gone", here.address)
    with noted(here):
        assert known_cluster(here.address) == known_at(here.address) == here
        assert need_secrets(None, here.address) == here.secrets_file


def test_who_starts_a_cluster_here_is_told_its_address_where_another_runs_on_ray(
    listener: str, tmp_path: Path
) -> None:
    assert is_found("127.0.0.1:50051")
    leave(note_of("chat", listener), "")
    assert is_found(listener)
    here = LocalNote(
        address="127.0.0.1:1", run_dir=str(tmp_path), pid=os.getpid(), machine=this_machine()
    )
    with noted(here):
        assert not is_found(here.address)


@pytest.mark.parametrize("command", [("logs", "--cluster", "chat"), ("down", "chat")])
def test_who_names_a_cluster_means_the_ray_that_its_note_has(
    penstock: Penstock, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    leave(replace(note_of("chat", "127.0.0.1:1"), ray="127.0.0.1:2"), "")
    said = penstock(*command)
    assert "No Ray answers at 127.0.0.1:2" in said.err
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:3")
    said = penstock(*command)
    assert "No Ray answers at 127.0.0.1:3" in said.err
    said = penstock(*command, "--ray", "127.0.0.1:4")
    assert "No Ray answers at 127.0.0.1:4" in said.err
