"""The command line as scripts and people meet it: data on stdout, the rest on stderr, stable exit
codes, sentences for errors."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cluster.proof import Doorkeeper, ServerProof
from deploy.run_dir import LOCK
from penstock.cli.notes import LocalNote, noted, this_machine
from penstock.v1 import worker_pb2 as pb
from tests.penstock.command_line import Penstock


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("PENSTOCK_ADDRESS", raising=False)
    return tmp_path


@pytest.fixture
def steps(request: pytest.FixtureRequest) -> Any:
    return request.config.pluginmanager.get_plugin(str(request.path.parent / "conftest.py"))


def test_the_answer_is_on_stdout_and_the_figures_on_stderr(penstock: Penstock, server: Any) -> None:
    ended = penstock("generate", "Hi", "--address", server.address, "--max-tokens", "0")
    assert (ended.code, ended.out) == (0, "Hello.\n")
    assert "2 of 3 prompt tokens cached" in ended.err
    assert "decode-0" in ended.err
    request = server.requests[0]
    assert request.chat.messages[0].content == "Hi"
    assert request.stop.HasField("max_tokens")


def test_raw_sends_the_text_as_it_is(penstock: Penstock, server: Any) -> None:
    penstock("generate", "len(", "--raw", "-a", server.address)
    assert server.requests[0].text == "len("


def test_a_class_and_a_session_reach_the_server(penstock: Penstock, server: Any) -> None:
    penstock("generate", "Hi", "--class", "batch", "--session", "talk", "-a", server.address)
    request = server.requests[0]
    assert (request.service_class, request.session_key) == ("batch", "talk")


def test_json_is_one_value(penstock: Penstock, server: Any, steps: Any) -> None:
    """Also where the answer could go on elsewhere: by what secret is nobody's who reads output."""
    told = steps.accepted(resume_secret=b"\xff" * 16)
    server.steps = [lambda _: iter([told, steps.finished()])]
    answer = penstock("generate", "Hi", "--json", "-a", server.address).json
    assert answer["text"] == "Hello."
    assert "resume_secret" not in answer["accepted"]
    assert answer["accepted"]["cached_tokens"] == 2
    assert answer["usage"]["completion_tokens"] == 2
    assert answer["client"]["ttft_seconds"] > 0


@pytest.mark.parametrize(
    ("code", "reason", "exit_code"),
    [
        ("INTERNAL", "INTERNAL", 1),
        ("INVALID_ARGUMENT", "INVALID_REQUEST", 3),
        ("UNAVAILABLE", "OVERLOADED", 5),
        ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", 6),
        ("ABORTED", "STREAM_INTERRUPTED", 7),
    ],
)
def test_a_failure_is_a_sentence_and_an_exit_code(
    penstock: Penstock, server: Any, steps: Any, code: str, reason: str, exit_code: int
) -> None:
    server.steps = [steps.refuses(grpc.StatusCode[code], reason, "Do that.", pushback="-1")]
    ended = penstock("generate", "Hi", "-a", server.address, "--json")
    assert ended.code == exit_code
    assert "error: Do that." in ended.err
    assert "Traceback" not in ended.err
    assert ended.json["error"]["reason"] == reason


def test_a_cut_off_answer_is_not_a_success(penstock: Penstock, server: Any, steps: Any) -> None:
    server.steps = [lambda _: iter([steps.accepted()])]
    assert penstock("generate", "Hi", "-a", server.address).code == 7


def test_no_cluster_says_what_to_do(penstock: Penstock) -> None:
    ended = penstock("models", "-a", "127.0.0.1:1")
    assert ended.code == 4
    assert "penstock serve" in ended.err


def test_a_wrong_option_is_a_usage_error(penstock: Penstock) -> None:
    assert penstock("generate", "--frobnicate").code == 2
    assert penstock("frobnicate").code == 2
    ended = penstock("serve", "--transport", "pigeon")
    assert ended.code == 2
    assert "shared_memory" in ended.err


@pytest.mark.parametrize(
    "command",
    ["serve", "demo", "chat", "generate", "status", "doctor", "models", "logs", "stop"],
)
def test_every_command_explains_itself(penstock: Penstock, command: str) -> None:
    ended = penstock(command, "--help")
    assert ended.code == 0
    assert "--json" in ended.out


def test_piped_turns_make_a_conversation(
    penstock: Penstock, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n\nAgain\n/new\nAnew\n/quit\nnot sent\n"))
    ended = penstock("chat", "-a", server.address, "--system", "Be brief.")
    assert (ended.code, ended.out) == (0, "Hello.\n" * 3)
    turns = [[m.content for m in request.chat.messages] for request in server.requests]
    assert turns == [
        ["Be brief.", "Hi"],
        ["Be brief.", "Hi", "Hello.", "Again"],
        ["Be brief.", "Anew"],
    ]
    sessions = [request.session_key for request in server.requests]
    assert sessions[0] == sessions[1] != sessions[2]


def test_a_failed_turn_leaves_no_trace_and_is_not_hidden(
    penstock: Penstock, server: Any, steps: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses = steps.refuses(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "Too long.")
    server.steps = [refuses, steps.answers]
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\nAgain\n"))
    ended = penstock("chat", "-a", server.address)
    assert (ended.code, ended.out) == (3, "Hello.\n")
    assert [m.content for m in server.requests[1].chat.messages] == ["Again"]


@pytest.mark.slow
@pytest.mark.parametrize("command", [["generate", "Hi"], ["chat"]])
def test_ctrl_c_cancels_the_request(server: Any, command: list[str]) -> None:
    server.steps = [server.holds]
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock", *command, "-a", server.address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("Hi\n")
    process.stdin.close()
    assert process.stdout.read(3) == "Hel"
    process.send_signal(signal.SIGINT)
    assert server.cancelled.wait(5)
    assert process.wait(10) == 130
    process.stdout.close()
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


@pytest.mark.slow
def test_who_reads_no_output_ends_the_command_with_a_code_of_its_own(server: Any) -> None:
    """A code of 1 would say that the cluster failed."""
    command = [sys.executable, "-m", "penstock", "models", "-a", server.address]
    unread, output = os.pipe()
    os.close(unread)
    with os.fdopen(output, "w") as closed:
        ended = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 141
    assert ended.stderr == ""


def test_text_commands(penstock: Penstock, server: Any) -> None:
    address = ("-a", server.address)
    assert penstock("tokenize", "a bb", *address).out == "1 2\n"
    assert penstock("tokenize", "a bb", "--json", *address).json == {
        "token_ids": [1, 2],
        "count": 2,
    }
    assert penstock("detokenize", "1", "2", *address).out == "x xx\n"
    assert penstock("models", "--json", *address).json[0]["name"] == "fake"
    assert "2048" in penstock("models", *address).out
    assert "grpcio" in penstock("version", "--json").json


def worker_status(name: str, *, serving: bool = True, reason: str = "") -> pb.WorkerStatus:
    status = pb.WorkerStatus(serving=serving, reason=reason)
    status.member.worker.worker_id = name
    status.member.role = pb.ROLE_DECODE
    return status


@pytest.fixture
def running(server: Any, home: Path) -> Iterator[LocalNote]:
    """A cluster that `penstock serve` started: its note and its run directory."""
    run_dir = home / "run"
    run_dir.mkdir()
    secrets = run_dir / "secrets.yaml"
    secrets.touch(mode=0o600)
    secrets.write_text(f"cluster_token: {'t' * 20}\nhash_secret: '{'0' * 32}'\n")
    (run_dir / LOCK).touch()
    (run_dir / "decode-0.yaml").touch()
    note = LocalNote(
        address=server.address, run_dir=str(run_dir), pid=os.getpid(), machine=this_machine()
    )
    with noted(note):
        yield note


def test_status_shows_what_serves(penstock: Penstock, server: Any, running: LocalNote) -> None:
    status = worker_status("decode-0")
    status.predicted_hit_tokens, status.actual_hit_tokens, status.index_age_seconds = 96, 64, 0.25
    server.status.workers.append(status)
    ended = penstock("status")
    assert ended.code == 0
    (row,) = [line for line in ended.out.splitlines() if line.startswith("decode-0")]
    assert "96, 64" in row
    assert "0.2 s" in row
    assert server.heard
    assert not any("t" * 20 in said for said in server.heard)  # it was proven, not told
    assert penstock("status", "--json").json["workers"][0]["serving"] is True


def test_status_says_where_prometheus_scrapes(
    penstock: Penstock, server: Any, running: LocalNote
) -> None:
    worker = worker_status("decode-0")
    worker.member.metrics = "127.0.0.1:4001"
    server.status.workers.append(worker)
    server.status.metrics = "127.0.0.1:4000"
    [line] = [each for each in penstock("status").out.splitlines() if each.startswith("metrics ")]
    assert "http://127.0.0.1:4000/metrics" in line
    assert "decode-0 127.0.0.1:4001" in line
    told = penstock("status", "--json").json
    assert (told["metrics"], told["workers"][0]["member"]["metrics"]) == (
        "127.0.0.1:4000",
        "127.0.0.1:4001",
    )
    for number in range(1, 20):
        server.status.workers.add().CopyFrom(worker_status(f"decode-{number}"))
        server.status.workers[-1].member.metrics = f"127.0.0.1:{4001 + number}"
    assert " · 20 workers\n" in penstock("status").out


def test_status_repeats_that_others_can_come_in(
    penstock: Penstock, server: Any, running: LocalNote
) -> None:
    server.status.workers.append(worker_status("decode-0"))
    server.status.listens, server.status.insecure = "0.0.0.0:50051", True
    ended = penstock("status")
    assert ended.out.splitlines()[-1].startswith("INSECURE: ")
    assert "0.0.0.0:50051" in ended.out
    assert penstock("status", "--json").json["insecure"] is True
    worker = server.status.workers[0].member.worker
    worker.address, worker.transports["nixl"] = "10.0.0.2:7001", "somewhere"
    *_, calls, kv = penstock("status").out.splitlines()
    assert calls.startswith("INSECURE: calls to decode-0, prompts included, can be read")
    assert kv.startswith("INSECURE: KV of decode-0 by nixl can be read")
    assert len(penstock("status", "--json").json["exposed"]) == 3
    worker.address, server.status.insecure = "127.0.0.1:7001", False
    server.status.plain = True
    assert "API keys and prompts can be read on their way to 0.0.0.0" in penstock("status").out
    server.status.plain = False
    assert "INSECURE" not in penstock("status").out
    assert penstock("status", "--json").json["exposed"] == []


def test_status_tells_who_may_call(penstock: Penstock, server: Any, running: LocalNote) -> None:
    server.status.workers.append(worker_status("decode-0"))
    assert (
        "callers are asked for no API key: all are the tenant 'default'" in penstock("status").out
    )
    callers = server.status.callers
    callers.asked, callers.keys, callers.refused = True, 3, 7
    assert "callers have API keys: 3 · 7 refused\n" in penstock("status").out
    callers.unchecked, callers.error = 5, "The file of API keys /k is not valid JSON."
    told = penstock("status").out
    assert "API keys: 3 · 7 refused, 5 quotas unchecked" in told
    assert "KEYS ARE NOT AS THEIR FILE SAYS: The file of API keys /k is not valid JSON." in told
    assert penstock("status", "--json").json["callers"]["keys"] == 3


def test_status_shows_how_classes_fare_and_how_wrong_the_router_is(
    penstock: Penstock, server: Any, running: LocalNote
) -> None:
    server.status.workers.append(worker_status("decode-0"))
    chat = {"placed": 40, "rejected": 3, "started": 40, "in_time": 39, "finished": 30, "steady": 30}
    server.status.classes.add(
        name="chat", ttft_seconds=0.75, itl_seconds=0.05, answer_tokens=212.4, **chat
    )
    server.status.classes.add(name="gone", placed=1)
    server.status.short_of_workers = True
    ttft = server.status.accuracy.ttft
    ttft.samples, ttft.bias = 40, 0.012
    ttft.ratio.p50, ttft.ratio.p90, ttft.ratio.p99 = 1.04, 1.5, 2.25
    lines = penstock("status").out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line[:4] in ("chat", "gone")}
    assert rows["chat"] == ["0.75", "s", "50", "ms", "40", "3", "97.5", "%", "100.0", "%", "212"]
    assert rows["gone"] == ["1", "0", "0"]
    assert "actual / predicted TTFT 1.04 (p90 1.50, p99 2.25)" in lines[-2]
    assert "+12 ms" in lines[-2]
    assert "shares count" in lines[-1]


def test_status_shows_each_pair_once_as_its_receiver_counts_it(
    penstock: Penstock, server: Any, running: LocalNote
) -> None:
    decode, prefill = worker_status("decode-0"), worker_status("prefill-0")
    received = decode.load.pairs.add(
        peer="prefill-0", direction=pb.PAIR_DIRECTION_RECEIVED, transport="tcp", transfers=7
    )
    received.bytes, received.write_seconds.sum = 3 << 20, 0.001
    received.failures.add(phase="written", reason="digest", count=2)
    received.failures.add(phase="granted", reason="lapsed", count=1)
    received.failures.add(phase="granted", reason="cancelled", count=8)
    sent = {"peer": "decode-0", "direction": pb.PAIR_DIRECTION_SENT}
    prefill.load.pairs.add(transport="tcp", transfers=9, **sent)
    prefill.load.pairs.add(transport="nixl", transfers=1, quarantined_blocks=4, **sent)
    server.status.workers.extend([decode, prefill])
    server.status.relay.predicted_hit_tokens = 96
    server.status.relay.actual_hit_tokens = 80
    lines = penstock("status").out.splitlines()
    rows = [line.split() for line in lines if line.startswith("prefill-0  decode-0")]
    assert [row[2:] for row in rows] == [
        ["nixl", "1", "0.0", "MiB", "0", "0", "4"],
        ["tcp", "7", "3.0", "MiB", "3.15", "8", "3", "(digest", "while", "written)", "0"],
    ]
    assert "96 cached tokens predicted, 80 found" in lines[-1]
    pairs = penstock("status", "--json").json["workers"][0]["load"]["pairs"]
    assert pairs[0]["failures"][0] == {"phase": "written", "reason": "digest", "count": 2}


def test_status_says_what_does_not_serve_and_why(
    penstock: Penstock, server: Any, running: LocalNote
) -> None:
    server.status.workers.append(
        worker_status("decode-0", serving=False, reason="no report for 1.2 s")
    )
    ended = penstock("status")
    assert ended.code == 8
    assert "NOT SERVING: no report for 1.2 s" in ended.out


@pytest.mark.parametrize("is_known", [True, False])
def test_status_says_that_a_lost_worker_is_started_again(
    penstock: Penstock, server: Any, running: LocalNote, is_known: bool
) -> None:
    if is_known:
        lost = worker_status("decode-0", serving=False, reason="unreachable")
        server.status.workers.append(lost)
    ended = penstock("status")
    assert ended.code == 8
    assert "RESTARTING: " in ended.out
    found = penstock("status", "--json").json
    assert found["restarting"] == ["decode-0"]
    assert [each["serving"] for each in found["workers"]] == [False]


def test_status_misses_a_worker_that_the_router_forgot(
    penstock: Penstock, server: Any, running: LocalNote
) -> None:
    ended = penstock("status")
    assert ended.code == 8
    assert "decode-0" in ended.out


def test_status_says_who_is_waited_for_and_who_crash_loops(
    penstock: Penstock, server: Any, running: LocalNote
) -> None:
    decode = pb.ROLE_DECODE
    server.status.workers.append(worker_status("decode-0", serving=False, reason="unreachable"))
    server.status.waiting.MergeFrom(
        pb.WaitingStatus(requests=7, bytes=3 << 20, longest_seconds=1.5)
    )
    server.status.away.extend(
        [
            pb.AwayWorker(worker_id="decode-0", role=decode, away_seconds=1.5, expected=True),
            pb.AwayWorker(worker_id="decode-1", role=decode, deaths=3, crash_looping=True),
        ]
    )
    ended = penstock("status")
    assert ended.code == 8
    said = " ".join(ended.out.split())
    assert "unreachable, away for 1.5 s, expected back" in said
    assert "crash-loops: 3 deaths within a minute, nobody waits for it" in said
    assert "7 requests wait for a decode worker that is expected back, 3.0 MiB" in said


@pytest.mark.parametrize("command", ["status", "doctor"])
def test_whoever_listens_at_the_routers_address_is_told_nothing_before_its_proof(
    penstock: Penstock, server: Any, running: LocalNote, command: str
) -> None:
    server.doorkeeper = Doorkeeper("the token of another cluster")
    ended = penstock(command)
    assert ended.code != 0
    assert "same secrets file" in ended.err
    assert server.heard == []
    server.doorkeeper.answer = lambda *_: ServerProof(bytes(32), bytes(32))
    ended = penstock(command)
    assert ended.code != 0
    assert "same secrets file" in ended.err
    assert server.heard == []


def test_status_without_the_secrets_says_what_to_give(penstock: Penstock, server: Any) -> None:
    ended = penstock("status", "-a", server.address)
    assert ended.code == 4
    assert "--secrets-file" in ended.err


def test_the_sdk_needs_neither_torch_nor_the_cluster() -> None:
    code = (
        "import sys, penstock; penstock.Client; penstock.AsyncClient;"
        "bad = {'torch', 'typer', 'rich', 'yaml', 'cluster', 'numpy'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_only_the_sdk_is_installed_the_command_says_what_to_do() -> None:
    """Of what is missing at once, and of what only one command needs."""
    for missing in ("typer", "pydantic"):
        code = (
            f"import sys; sys.modules['{missing}'] = None; sys.argv[1:] = ['simulate'];"
            "from penstock.cli import main; main()"
        )
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert ended.returncode == 1
        [line] = ended.stderr.splitlines()
        assert line.startswith(f"error: The command line needs '{missing}'")
        assert "'.[cluster]'" in line
        assert "penstock[" not in line
