"""`penstock bundle` of a cluster whose router is dead, of one that has ended, and where a secret is
in a log."""

import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.secrets import Secrets, create_secrets
from deploy.log_dir import default_log_root, open_log_dir
from penstock.cli import bundle_parts
from penstock.cli.bundle_subject import Subject
from penstock.cli.log_source import in_folder
from penstock.cli.notes import LocalNote, noted, this_machine
from penstock.cli.placed_notes import PlacedNote, leave
from penstock.errors import CallerError, UnreachableError
from tests.penstock.command_line import Penstock
from tests.written_secrets import written

PROMPT = "tell nobody about the merger"
OURS = "2026-01-01T00:00:01.000Z INFO router.fleet worker decode-0 is gone"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "PENSTOCK_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run_dir(home: Path) -> Path:
    path = home / "run"
    path.mkdir()
    return path


@pytest.fixture
def secrets(run_dir: Path) -> Secrets:
    return create_secrets(run_dir / "secrets.yaml")


@pytest.fixture
def log_dir(run_dir: Path, secrets: Secrets) -> Iterator[Path]:
    """Of a cluster that runs, whose router does not answer."""
    config = {"worker_id": "decode-0", "router": "redis://:the-password@10.0.0.1/0"}
    (run_dir / "decode-0.yaml").write_text(yaml.safe_dump(config))
    (run_dir / "cluster.yaml").write_text("kind: Cluster\n")
    with open_log_dir(default_log_root()) as folder:
        (folder / "router.log").write_text(f"{OURS}\nsome library: {PROMPT}\n")
        note = LocalNote(
            address="127.0.0.1:1",
            run_dir=str(run_dir),
            log_dir=str(folder),
            pid=os.getpid(),
            name="lab",
            machine=this_machine(),
        )
        with noted(note):
            yield folder


def members_of(path: Path) -> Mapping[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as tar:
        found = {each.name: tar.extractfile(each) for each in tar.getmembers()}
        return {name.partition("/")[2]: file.read() for name, file in found.items() if file}


def test_a_dead_router_is_told_and_the_rest_is_packed_without_secrets_and_prompts(
    penstock: Penstock, home: Path, log_dir: Path, secrets: Secrets
) -> None:
    said = penstock("bundle", "-o", "lab.tar.gz", "--json")
    assert said.code == 0
    members = members_of(home / "lab.tar.gz")
    assert set(members) == {
        "contents.json",
        "versions.json",
        "cluster.yaml",
        "configuration/decode-0.yaml",
        "logs/router.log",
    }
    contents = json.loads(members["contents.json"])
    asked = {"status.json", "doctor.json", "policy.json", "records.json"}
    assert asked == set(contents["missing"])
    assert "127.0.0.1:1" in contents["missing"]["status.json"]
    assert said.json["missing"] == contents["missing"]
    assert contents["not_searched_for"] == {}
    assert members["logs/router.log"].decode().splitlines()[0] == OURS
    assert yaml.safe_load(members["configuration/decode-0.yaml"])["router"].endswith("10.0.0.1/0")
    planted = [PROMPT, "the-password", *written(secrets)]
    assert len(planted) > 4, "there is a key among them"
    for name, data in members.items():
        assert [each for each in planted if each.encode() in data] == [], name
    assert json.loads(members["versions.json"])["this machine"]["kernel"]
    again = penstock("bundle", "-o", "lab.tar.gz")
    assert again.code == 2
    assert "File exists" in again.err


def test_where_a_secret_is_found_nothing_is_written_and_its_name_alone_is_told(
    penstock: Penstock, home: Path, log_dir: Path, secrets: Secrets
) -> None:
    (log_dir / "decode-0.log").write_text(f"{OURS} {secrets.hash_secret.hex()}\n")
    said = penstock("bundle", "-o", "lab.tar.gz")
    assert said.code == 1
    assert "Nothing is written: the hash secret" in said.err
    assert "is in 'logs/decode-0.log'" in said.err
    assert secrets.hash_secret.hex() not in said.err + said.out
    assert not (home / "lab.tar.gz").exists()


def test_of_a_cluster_that_has_ended_the_logs_are_left(penstock: Penstock, home: Path) -> None:
    assert penstock("bundle").code == 2
    with open_log_dir(default_log_root()) as folder:
        (folder / "router.log").write_text(f"{OURS}\n")
    said = penstock("bundle", "--json")
    assert said.code == 0
    assert said.json["members"] == ["contents.json", "versions.json", "logs/router.log"]
    contents = json.loads(members_of(home / said.json["file"])["contents.json"])
    assert "the cluster's secrets" in contents["not_searched_for"]


def test_a_ray_that_does_not_answer_costs_what_it_alone_knows(
    penstock: Penstock, home: Path, run_dir: Path, secrets: Secrets
) -> None:
    note = PlacedNote(
        name="chat",
        model="m",
        routers=("127.0.0.1:1",),
        internal=("127.0.0.1:1",),
        secrets_file=str(run_dir / "secrets.yaml"),
        ray="127.0.0.1:1",
    )
    leave(note, "kind: Cluster\n")
    said = penstock("bundle", "--json")
    assert said.code == 0
    assert said.json["members"] == ["contents.json", "versions.json", "cluster.yaml"]
    assert "No Ray answers at 127.0.0.1:1" in said.json["missing"]["logs"]
    assert Path(said.json["file"]).name.startswith("penstock-chat-")
    assert "127.0.0.1:1" in said.json["missing"]["status.json"]
    asked = ("-o", "again.tar.gz", "--cluster", "chat", "-a", "127.0.0.1:2", "--json")
    again = penstock("bundle", *asked)  # a router that the note does not know
    assert "127.0.0.1:2" in again.json["missing"]["status.json"]


def test_the_variable_names_the_cluster_as_the_flag_does(
    penstock: Penstock, log_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_ADDRESS", "127.0.0.1:2")
    said = penstock("bundle", "--json")
    assert said.code == 0
    assert said.json["members"] == ["contents.json", "versions.json"]
    assert "give --secrets-file" in said.json["missing"]["status.json"]
    assert Path(said.json["file"]).name.startswith("penstock-cluster-")


@pytest.mark.parametrize("dead", ["a:1", "b:1"])
def test_one_dead_router_costs_no_record_that_another_tells(
    home: Path, monkeypatch: pytest.MonkeyPatch, dead: str
) -> None:
    def explained(request_id: str, address: str, _: Path) -> Any:
        if address == dead:
            raise UnreachableError("nobody is there")
        if request_id == "forgotten":
            raise CallerError("it is not remembered")
        return {"request_id": request_id}

    monkeypatch.setattr(bundle_parts, "explanation_json", explained)
    said = [f"{OURS} request_id={each}\n" for each in ("forgotten", "known")]
    (home / "router-0.log").write_text("".join(said))
    subject = Subject(
        routers=("a:1", "b:1"),
        secrets_file=Path("secrets.yaml"),
        logs=in_folder(home),
        versions=dict[str, Any],
    )
    found = bundle_parts.gather(subject, say=lambda _: None)
    assert json.loads(found.members["records.json"]) == [
        {"request_id": "known"},
        {"request_id": "forgotten", "unknown": "it is not remembered"},
    ]
