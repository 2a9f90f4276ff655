"""`penstock bench`: measures the cluster that runs, or one for the occasion."""

import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from deploy.cluster_file.local import SHIPPED_MODEL
from penstock.load.session import NUM_WARM_UP
from tests.penstock.command_line import Penstock

FEW = ("--requests", "6", "--unloaded", "2", "--prompt-tokens", "5")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("PENSTOCK_ADDRESS", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def steps(request: pytest.FixtureRequest) -> Any:
    return request.config.pluginmanager.get_plugin(str(request.path.parent / "conftest.py"))


def test_the_cluster_that_runs_is_measured(
    penstock: Penstock, server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PENSTOCK_ADDRESS", server.address)
    monkeypatch.chdir(tmp_path)
    ended = penstock("bench", *FEW, "--class", "batch", "--json", "--output", "figures.json")
    assert ended.code == 0, ended.err
    assert ended.json["address"] == server.address
    assert ended.json["load"]["completed"] == 6
    assert ended.json["added_to_ttft"]["completed"] == 2
    assert ended.json["load"]["ttft_ms"]["p50"] > 0
    assert json.loads((tmp_path / "figures.json").read_text()) == ended.json
    assert len(server.requests) == NUM_WARM_UP + 2 + 6
    assert {request.service_class for request in server.requests} == {"batch"}
    assert {len(request.token_ids.ids) for request in server.requests} == {5}
    assert "6 requests, 4 at a time." in ended.err


def test_people_get_a_table(penstock: Penstock, server: Any) -> None:
    ended = penstock("bench", *FEW, "--rate", "1000", "-a", server.address)
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[0] == f"the cluster at {server.address}"
    assert lines[1] == "1000 a second, 5 prompt tokens, 64 output tokens"
    assert any(line.split() == ["errors", "none"] for line in lines)


@pytest.mark.parametrize(
    ("reasons", "code"), [(["OVERLOADED"], 5), (["OVERLOADED", "WORKER_LOST"], 1)]
)
def test_errors_under_load_are_counted_and_end_it(
    penstock: Penstock, server: Any, steps: Any, reasons: list[str], code: int
) -> None:
    refusals = [steps.refuses(grpc.StatusCode.UNAVAILABLE, reason) for reason in reasons]
    server.steps = [steps.answers] * (NUM_WARM_UP + 1) + refusals + [steps.answers]
    few = ("--requests", "6", "--unloaded", "0", "--json")
    ended = penstock("bench", *few, "-a", server.address)
    assert ended.code == code
    assert ended.json["load"]["errors"] == dict.fromkeys(reasons, 1)
    assert ended.json["load"]["completed"] == 6 - len(reasons)
    assert f"{len(reasons)} of 6 requests failed: 1 OVERLOADED" in ended.err


def test_what_nobody_would_answer_is_refused_before_the_load(
    penstock: Penstock, server: Any, steps: Any
) -> None:
    server.steps = [
        steps.refuses(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "There is no class.")
    ]
    ended = penstock("bench", *FEW, "-a", server.address, "--json")
    assert ended.code == 3
    assert ended.json["error"]["message"] == "There is no class."
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ((), 4, "No cluster answers there: start one with 'penstock serve'"),
        (("--start", "-a", "a:1"), 2, "'--start' or '--address', not both"),
        (("--num-blocks", "5"), 2, "'--num-blocks' is of a cluster that is started"),
        (("--output", "no/such/file"), 2, "There is no directory"),
        (("--start", "--model-dir", "nowhere"), 2, "There is no checkpoint directory"),
        (("--requests", "0"), 2, "--requests"),
        (("--rate", "fast"), 2, "--rate"),
    ],
)
def test_wrong_use_is_a_sentence(
    penstock: Penstock, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    ended = penstock("bench", *arguments)
    assert ended.code == code
    assert sentence in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.slow
def test_a_cluster_is_started_for_it_when_asked(
    penstock: Penstock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths are the caller's, whatever directory the package is in."""
    (tmp_path / "mine").symlink_to(SHIPPED_MODEL)
    monkeypatch.chdir(tmp_path)
    cluster = ("--start", "--model-dir", "mine", "--prefill", "0", "--num-blocks", "256")
    ended = penstock("bench", *FEW, *cluster, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["load"]["completed"] == 6
    assert ended.json["setup"].endswith("0 prefill, 1 decode, 1 thread(s) each")
    assert ended.json["router"]["resident_mb"] > 1
