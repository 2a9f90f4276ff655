"""What is wrong ends in a sentence and a code: 2 where the command was given what is of no use."""

import io
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from deploy.cluster_file.local import SHIPPED_MODEL
from tests.penstock.command_line import Penstock


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("PENSTOCK_ADDRESS", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("serve --frobnicate", "No such option"),
        ("serve --transport pigeon", "There is no transport 'pigeon'"),
        ("serve --model-dir nowhere", "There is no checkpoint directory"),
        ("serve --block-size 7", "'--block-size 7': give what divides 16"),
        ("serve --threads 100000", "--threads"),
        ("serve --policy nowhere", "'nowhere' cannot be read"),
        ("serve --port 70000", "--port"),
        ("demo --model-dir nowhere", "There is no checkpoint directory"),
        ("simulate --workers 2x2", "PREFILL+DECODE"),
        ("simulate --fault flood --limit 1", "is no fault"),
        ("simulate --trace nowhere", "The trace nowhere cannot be read: No such file"),
        ("simulate --like localhost:http", "is no address"),
        ("policy replay --workers 2x2", "'--workers 2x2': give a number"),
        ("policy replay --rule fastest", "is no rule"),
        ("policy replay --link 10Gbi", "'--link 10Gbi': give bytes or bits a second"),
        ("policy replay --link 0GB", "give more than 0"),
        ("policy replay --workload floods", "is no workload: give one of shared_prefixes"),
        ("policy replay --workload bursts --trace x", "not both"),
        ("policy show nowhere", "'nowhere' cannot be read"),
        ("policy diff nowhere nowhere", "'nowhere' cannot be read"),
        ("policy apply nowhere", "'nowhere' cannot be read"),
        ("policy import x --from dynamo", "'llm-d', 'sglang'"),
        ("status --secrets-file nowhere", "nowhere cannot be read"),
        ("doctor --timeout soon", "--timeout"),
        ("generate", "Missing argument"),
        ("chat --temperature warm", "--temperature"),
        ("detokenize x", "integer"),
        ("models -a http://localhost:50051", "is no address"),
        ("models -a 50051", "'50051' is a port: give HOST:PORT, as 127.0.0.1:50051"),
        ("explain", "Missing argument"),
        ("version --frobnicate", "No such option"),
    ],
)
def test_what_is_of_no_use_ends_with_2(penstock: Penstock, command: str, sentence: str) -> None:
    ended = penstock(*command.split())
    assert ended.code == 2
    said = " ".join(ended.err.replace("│", " ").split())
    assert sentence in said
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    "command",
    ["generate Hi", "chat", "status", "doctor", "models", "tokenize x", "detokenize 1", "explain x"]
    + [f"policy {name}" for name in ("status", "reload", "rollback", "explain x")]
    + [f"policy apply {SHIPPED_MODEL.parents[1]}/deploy/policies/default.yaml", "bench"],
)
def test_without_a_cluster_they_end_with_4_and_say_what_to_do(
    penstock: Penstock, command: str
) -> None:
    ended = penstock(*command.split(), "-a", "127.0.0.1:1", "--json")
    assert ended.code == 4
    assert "penstock serve" in ended.err
    assert ended.json["error"]["reason"] == "UNREACHABLE"


@pytest.mark.parametrize("command", ["generate -", "tokenize -", "chat", "policy check -"])
def test_what_is_no_text_on_stdin_is_a_sentence(
    penstock: Penstock, server: Any, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    binary = io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", binary)
    of_a_cluster = [] if command.startswith("policy") else ["-a", server.address]
    ended = penstock(*command.split(), *of_a_cluster)
    assert ended.code == 2
    assert "no UTF-8 text" in ended.err


def test_a_turn_that_fails_is_a_value_of_its_own(
    penstock: Penstock, server: Any, monkeypatch: pytest.MonkeyPatch, request: Any
) -> None:
    steps = request.config.pluginmanager.get_plugin(str(request.path.parent / "conftest.py"))
    refuses = steps.refuses(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "Too long.")
    server.steps = [refuses, steps.answers]
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\nAgain\n"))
    ended = penstock("chat", "-a", server.address, "--json")
    failed, answered = ended.out.splitlines()
    assert '"message": "Too long."' in failed
    assert '"text": "Hello."' in answered
