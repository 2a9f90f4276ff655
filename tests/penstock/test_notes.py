"""A running cluster is found by any of its addresses, whoever asks; a dead one is not."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from penstock.cli.local import find_address, find_cluster, find_note, is_found
from penstock.cli.notes import LocalNote, noted, running, this_machine
from penstock.cli.way_in import ClientFiles, way_in
from tests.certificates import SigningCa, write_pair
from tests.penstock.command_line import Penstock

DIES = """
import os, sys
from penstock.cli.notes import LocalNote, noted, this_machine
note = LocalNote(address="127.0.0.1:1", run_dir="/r/died", pid=os.getpid(), machine=this_machine())
with noted(note):
    os._exit(0)
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("PENSTOCK_ADDRESS", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def note_of(name: str, address: str, *, listens: str = "") -> LocalNote:
    return LocalNote(
        address=address,
        listens=listens,
        run_dir=f"/r/{name}",
        pid=os.getpid(),
        model=f"model-{name}",
        machine=this_machine(),
    )


FIRST, SECOND = note_of("first", "127.0.0.1:1001"), note_of("second", "127.0.0.1:1002")


def test_the_flag_precedes_the_variable_precedes_who_runs_precedes_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert find_address(None) == "127.0.0.1:50051"
    with noted(FIRST):
        assert find_address(None) == FIRST.address
        assert is_found(FIRST.address)
        monkeypatch.setenv("PENSTOCK_ADDRESS", "b:2")
        assert find_address(None) == "b:2"
        assert not is_found(FIRST.address)
        assert find_address("a:1") == "a:1"


def test_the_end_of_one_cluster_hides_no_other(penstock: Penstock) -> None:
    with noted(FIRST):
        with noted(SECOND):
            assert running() == [FIRST, SECOND]
            ended = penstock("models")
            assert ended.code == 2
            assert FIRST.address in ended.err
            assert "model-second" in ended.err
            assert find_note(SECOND.address) == SECOND
            assert not is_found(SECOND.address)
        assert running() == [FIRST]
        assert find_address(None) == FIRST.address


def test_who_asks_for_another_cluster_is_told_which_run(penstock: Penstock) -> None:
    with noted(FIRST), noted(SECOND):
        ended = penstock("status", "-a", "127.0.0.1:9")
    assert ended.code == 4
    assert "127.0.0.1:9 " in ended.err
    assert FIRST.address in ended.err
    assert SECOND.address in ended.err


def own_addresses() -> list[str]:
    """All by which this machine is known to itself."""
    found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    return ["127.0.0.1", "localhost", "127.0.0.7", socket.gethostname(), str(found[0][4][0])]


@pytest.mark.parametrize("asked", own_addresses())
@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])
def test_what_listens_everywhere_is_found_by_each_address(asked: str, host: str) -> None:
    asked = f"[{asked}]" if ":" in asked else asked
    note = replace(FIRST, listens=f"{host}:1001")
    with noted(note):
        assert find_note(f"{asked}:1001") == note
        assert find_note(f"{asked}:1002") is None
        assert find_note("192.0.2.200:1001") is None  # another machine's
        assert find_note("no-such-host.invalid:1001") is None
        assert find_note("nonsense") is None


def test_a_note_is_private_and_others_are_not_believed(home: Path) -> None:
    with noted(FIRST):
        path = home / ".penstock" / "clusters" / "first.json"
        assert path.stat().st_mode & 0o777 == 0o600
        path.chmod(0o666)
        assert running() == []  # others could have written it
        path.chmod(0o600)
        path.parent.chmod(0o777)
        assert running() == []
        path.parent.chmod(0o700)
        assert running() == [FIRST]
    assert not path.exists()


def test_the_note_of_a_killed_cluster_is_swept(home: Path) -> None:
    subprocess.run([sys.executable, "-c", DIES], check=True)
    path = home / ".penstock" / "clusters" / "died.json"
    assert path.exists()
    assert running() == []
    assert not path.exists()


def test_what_runs_in_a_container_is_neither_found_nor_swept(home: Path) -> None:
    with noted(replace(FIRST, machine="another")):
        assert running() == []
        assert (home / ".penstock" / "clusters" / "first.json").exists()


def test_a_note_of_a_newer_version_is_read_and_nonsense_is_passed_over(home: Path) -> None:
    with noted(FIRST), noted(SECOND):
        folder = home / ".penstock" / "clusters"
        said = json.dumps({**asdict(FIRST), "colour": "red"})
        (folder / "first.json").write_text(said)  # the same file: it stays locked
        (folder / "second.json").write_text("[]")
        assert running() == [FIRST]


def test_whoever_knows_only_one_of_the_places_finds_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "runtime"))
    with noted(FIRST):
        assert running() == [FIRST]
        monkeypatch.delenv("XDG_RUNTIME_DIR")  # as in a job of cron's
        assert running() == [FIRST]
        monkeypatch.setenv("HOME", str(home / "elsewhere"))  # as after `su`
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "runtime"))
        assert running() == [FIRST]


@pytest.mark.parametrize("variables", [("XDG_RUNTIME_DIR",), ("XDG_RUNTIME_DIR", "HOME")])
def test_one_place_that_can_be_written_is_enough(
    home: Path, monkeypatch: pytest.MonkeyPatch, variables: tuple[str, ...]
) -> None:
    (home / "file").touch()
    for variable in variables:
        monkeypatch.setenv(variable, str(home / "file" / "run"))
    with noted(FIRST):
        assert running() == [FIRST]
    assert running() == []


def test_a_note_that_can_be_left_nowhere_is_an_oserror(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "file").touch()
    for variable in ("XDG_RUNTIME_DIR", "HOME"):
        monkeypatch.setenv(variable, str(home / "file" / "run"))
    monkeypatch.setattr("tempfile.tempdir", str(home / "file"))
    with pytest.raises(OSError, match="file"), noted(FIRST):
        pass
    assert running() == []


@pytest.mark.parametrize(
    ("host", "name"), [("127.0.0.1", None), ("llm.example.com", "llm.example.com")]
)
def test_of_a_cluster_under_tls_the_certificate_and_the_way_for_operators_are_known(
    host: str, name: str | None, home: Path
) -> None:
    files = write_pair(home, SigningCa().pair(host))
    shown = str(files.certificate)
    with noted(replace(FIRST, internal="127.0.0.1:1009", certificate=shown)):
        address, given = way_in(None, ClientFiles())
        assert address == FIRST.address
        assert (given["ca_file"], given["server_name"]) == (files.certificate, name)
        # What a person says goes before.
        assert way_in(None, ClientFiles(ca_file=Path("other.pem")))[1]["ca_file"] == Path(
            "other.pem"
        )
        for flag in (None, FIRST.address, f"grpcs://{FIRST.address}", "127.0.0.1:1009"):
            where, secrets = find_cluster(flag, None)
            assert (where, secrets) == ("127.0.0.1:1009", FIRST.secrets_file)
