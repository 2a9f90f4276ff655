"""`penstock serve` and `penstock demo` as a person runs them: real processes, the shipped model."""

import json
import os
import signal
import socket
import statistics
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from cluster.secrets import create_secrets, load_secrets
from kv_transfer.pool import PREFIX as POOL_PREFIX
from penstock import Client, PenstockError
from penstock.cli.status import fetch_status
from tests.deploy.polling import is_alive
from tests.deploy.served import COMMAND, Served, environment_of, serving
from tests.written_secrets import written

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

QUESTION = [("user", "What does len do?")]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Also a witness: it logs all that it can."""
    flags = ["--disaggregate", "always", "--log-level", "debug", "--log-format", "json"]
    with serving(tmp_path_factory.mktemp("home"), *flags) as cluster:
        yield cluster


def test_a_bundle_has_all_of_the_cluster_and_nothing_that_was_asked_of_it(
    served: Served, tmp_path: Path
) -> None:
    prompt = "Say nothing of the harbour tunnel before Wednesday"
    with Client(served.address) as client:
        answer = client.generate(prompt, max_tokens=16, ignore_eos=True).result()
        ids = client.tokenize(prompt)
    ended = served.penstock("bundle", "-o", str(tmp_path / "b.tar.gz"), "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["missing"] == {}
    with tarfile.open(tmp_path / "b.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    members = {path.name: path for path in (tmp_path / "b").rglob("*") if path.is_file()}
    assert {"status.json", "doctor.json", "policy.json", "records.json"} < set(members)
    assert {"router.yaml", "prefill-0.yaml", "decode-0.yaml", "cluster.yaml"} < set(members)
    assert {"router.log", "prefill-0.log", "decode-0.log", "serve.log"} < set(members)
    records = json.loads(members["records.json"].read_text())
    assert records[0]["request_id"] == answer.accepted.request_id
    assert records[0]["tries"][0]["candidates"]
    secrets = load_secrets(Path(served.ready["run_dir"]) / "secrets.yaml")
    planted = ["harbour", "Wednesday", answer.text, ", ".join(map(str, ids[:6]))]
    planted += written(secrets)
    for name, path in members.items():
        assert [each for each in planted if each in path.read_text()] == [], name


def test_the_shipped_model_answers_and_the_repeated_prompt_is_cached(served: Served) -> None:
    with Client(served.address) as client:
        first = client.generate(messages=QUESTION).result()
        again = client.generate(messages=QUESTION).result()
    assert first.text == "Return the number of items in a container."
    assert first.finish_reason == "stop"
    assert first.accepted.prefill_worker == "prefill-0"
    assert again.token_ids == first.token_ids
    assert again.usage.cached_tokens >= 64
    assert first.timeline.recomputes == again.timeline.recomputes == 0


def test_other_commands_find_the_cluster(served: Served) -> None:
    ended = served.penstock("chat", text="What does len do?\n")
    assert ended.stdout == "Return the number of items in a container.\n"
    assert ended.returncode == 0
    ended = served.penstock("status")
    assert ended.returncode == 0, ended.stdout
    assert "prefill-0" in ended.stdout
    [model] = json.loads(served.penstock("models", "--json").stdout)
    assert model["name"] == "penstock-tiny"


@pytest.mark.prove
def test_two_clusters_are_told_apart_and_the_first_outlives_the_note_of_the_second(
    served: Served,
) -> None:
    """The second listens everywhere."""
    flags = ["--prefill", "0", "--host", "0.0.0.0", "--insecure"]
    with serving(served.home, *flags) as second:
        port = second.address.rpartition(":")[2]
        assert second.address == f"127.0.0.1:{port}"
        assert (second.ready["listens"], second.ready["insecure"]) == (f"0.0.0.0:{port}", True)
        assert served.ready["insecure"] is False
        ended = served.penstock("status")
        assert ended.returncode == 2
        assert {served.address, second.address} <= set(ended.stderr.split())
        assert "--address" in ended.stderr
        for each, host in ((served, "localhost"), (second, socket.gethostname())):
            port = each.address.rpartition(":")[2]
            ended = served.penstock("status", "-a", f"{host}:{port}")
            assert ended.returncode == 0, ended.stderr
            assert ("prefill-0" in ended.stdout) == (each is served)
            assert ("INSECURE" in ended.stdout) == (each is second)
        ended = served.penstock("stop", "-a", second.address)
        assert ended.returncode == 0, ended.stderr
        assert second.process.wait(10) == 0
        logs = Path(second.ready["log_dir"])
        assert "draining" in (logs / "router.log").read_text()
        assert "SIGTERM was sent" in (logs / "serve.log").read_text()
    ended = served.penstock("policy", "status")
    assert ended.returncode == 0, ended.stderr


def test_the_log_has_a_line_a_request_and_neither_prompts_nor_secrets(served: Served) -> None:
    word, other = "zebrafish", "axolotl"
    with Client(served.address) as client:
        answer = client.generate(f"{word}?", stop=[other], session_key=other).result()
        client.generate(messages=[("user", word)], n=2, max_tokens=3).result()
        client.tokenize(word)
        with pytest.raises(PenstockError):
            client.generate(word, model=other).result()
        with pytest.raises(PenstockError):
            client.generate(word, stop=[other] * 100).result()
        stream = client.generate(word * 20_000)  # by a process of its own
        with pytest.raises(PenstockError):
            stream.result()
    logs, secrets = Path(served.ready["log_dir"]), Path(served.ready["run_dir"]) / "secrets.yaml"
    names = {path.name for path in logs.glob("*.log")}
    assert names == {"router.log", "prefill-0.log", "decode-0.log", "serve.log"}
    said = "".join(path.read_text() for path in logs.iterdir())
    hidden = [word, other, *yaml.safe_load(secrets.read_text()).values()]
    assert [each for each in hidden if each in said] == []
    shown = served.penstock("logs", "router", "-n", "0").stdout.splitlines()
    records = [json.loads(line) for line in shown if line.startswith("{")]
    [line] = [each for each in records if each.get("request_id") == answer.accepted.request_id]
    assert (line["level"], line["outcome"]) == ("request", "finished")
    assert (line["prefill"], line["decode"]) == ("prefill-0", "decode-0")
    assert line["prompt_tokens"] == answer.usage.prompt_tokens
    assert line["completion_tokens"] == answer.usage.completion_tokens
    assert 0 < line["ttft_ms"] <= line["total_ms"]
    reasons = [each.get("reason") for each in records if each["level"] == "request"]
    assert {"UNKNOWN_MODEL", "INVALID_REQUEST"} <= set(reasons)


def test_the_doctor_finds_the_cluster_well_and_measures_its_pair(served: Served) -> None:
    ended = served.penstock("doctor", "--json")
    assert ended.returncode == 0, ended.stdout
    said = json.loads(ended.stdout)
    [pair] = said["pairs"]
    assert (pair["source"], pair["receiver"]) == ("prefill-0", "decode-0")
    assert pair["severity"] != "fail"
    assert pair["num_bytes"] > 1 << 20
    assert pair["bytes_per_second"] > 1e7
    assert {each["severity"] for each in said["findings"]} <= {"pass", "warn"}
    assert all(each["check"] != "sockets" for each in said["findings"] if each["fix"])
    measured = [each for each in said["findings"] if each["check"] == "measured"]
    assert {each["subject"] for each in measured} == {"prefill-0", "decode-0"}
    assert all("product 256x" in each["what"] for each in measured)


def test_bad_input_is_refused_with_its_field_and_the_cluster_serves_on(served: Served) -> None:
    ended = served.penstock("generate", "Hi", "--temperature", "-1", "--json")
    assert ended.returncode == 3
    assert "temperature" in json.loads(ended.stdout)["error"]["metadata"]["field"]
    assert served.penstock("generate", "What does len do?").returncode == 0


@pytest.mark.alone
def test_a_stopped_worker_shows_within_two_seconds(served: Served) -> None:
    """Asked by the call behind `penstock status`: on a busy machine the command takes longer to
    start than the supervisor leaves a stopped worker."""
    pid = served.pids()["decode-0"]
    secrets_file = Path(served.ready["run_dir"]) / "secrets.yaml"
    os.kill(pid, signal.SIGSTOP)
    time.sleep(1.8)  # the promise is about wall-clock time
    shown = fetch_status(served.address, secrets_file).workers
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    [worker] = [each for each in shown if each.member.worker.worker_id == "decode-0"]
    assert not worker.serving
    assert worker.reason
    deadline = time.monotonic() + 60  # it may have been started again
    while "decode-0" not in serving_now(served) and time.monotonic() < deadline:
        time.sleep(0.1)


def test_a_killed_worker_comes_back(tmp_path: Path) -> None:
    with serving(tmp_path, "--prefill", "0") as cluster:
        old = cluster.pids()["decode-0"]
        os.kill(old, signal.SIGKILL)
        shown = cluster.penstock("status")
        assert shown.returncode == 8
        assert "RESTARTING: " in shown.stdout
        deadline = time.monotonic() + 60
        while cluster.pids()["decode-0"] == old and time.monotonic() < deadline:
            time.sleep(0.1)
        while "decode-0" not in serving_now(cluster) and time.monotonic() < deadline:
            time.sleep(0.1)
        with Client(cluster.address) as client:
            answer = client.generate(messages=QUESTION).result()
        assert answer.text == "Return the number of items in a container."
        pools = list(Path(cluster.ready["run_dir"]).glob(f"{POOL_PREFIX}*"))
        assert len(pools) == 1  # the dead one's is swept


def serving_now(cluster: Served) -> set[str]:
    return {name for name, worker in cluster.status().items() if worker["serving"]}


def test_ctrl_c_lets_the_answer_end_and_leaves_nothing(tmp_path: Path) -> None:
    with serving(tmp_path) as cluster, Client(cluster.address) as client:
        stream = client.generate(messages=QUESTION, ignore_eos=True, max_tokens=200)
        next(stream)
        pids = cluster.pids()
        cluster.process.send_signal(signal.SIGINT)
        assert len(stream.result().token_ids) == 200
        assert cluster.process.wait(60) == 0
    assert not Path(cluster.ready["run_dir"]).exists()
    assert not list((tmp_path / ".penstock").rglob("*.*"))
    for pid in pids.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_nothing_outlives_a_killed_launcher(tmp_path: Path) -> None:
    with serving(tmp_path, "--prefill", "0") as cluster:
        pids = cluster.pids()
        cluster.process.kill()
        cluster.process.wait()
        deadline = time.monotonic() + 40
        while any(map(is_alive, pids.values())) and time.monotonic() < deadline:
            time.sleep(0.1)
    assert [name for name, pid in pids.items() if is_alive(pid)] == []


def test_a_taken_port_is_a_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = subprocess.run(
            [*COMMAND, "serve", "--port", port],
            env=environment_of(tmp_path),
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert ended.returncode == 1
    [_, line] = ended.stderr.splitlines()
    assert line.startswith(f"error: router did not start: Could not listen on '127.0.0.1:{port}'")
    assert "is the port taken" in line
    assert len(line) < 400


@pytest.mark.parametrize("fault", ["missing", "empty", "pickled"])
def test_a_bad_checkpoint_is_a_sentence(tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "checkpoint"
    if fault != "missing":
        folder.mkdir()
    if fault == "pickled":
        (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
        (folder / "pytorch_model.bin").touch()
    ended = subprocess.run(
        [*COMMAND, "serve", "--model-dir", str(folder)],
        env=environment_of(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert str(folder) in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_demo_shows_a_prefix_hit_on_the_third(tmp_path: Path) -> None:
    ended = subprocess.run(
        [*COMMAND, "demo", "--json"],
        env=environment_of(tmp_path),
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert ended.returncode == 0, ended.stderr
    answers = json.loads(ended.stdout)
    assert len(answers) == 3
    assert answers[2]["usage"]["cached_tokens"] > answers[0]["usage"]["cached_tokens"]
    assert all(answer["accepted"]["prefill_worker"] == "prefill-0" for answer in answers)
    assert answers[2]["text"] == answers[0]["text"]
    assert all(answer["timeline"]["first_token_seconds"] > 0 for answer in answers)


@pytest.mark.prove
def test_a_cluster_serves_on_where_no_note_can_be_left_at_home(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    nowhere = str(tmp_path / "file" / "run")
    variables = dict.fromkeys(("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "HOME"), nowhere)
    with serving(tmp_path, "--prefill", "0", **variables) as cluster:
        address, old = cluster.address, cluster.pids()["decode-0"]
        os.kill(old, signal.SIGKILL)
        assert until(lambda: cluster.pids()["decode-0"] != old)
        with Client(address) as client:
            assert client.generate(messages=QUESTION).result().text
        cluster.process.send_signal(signal.SIGINT)
        assert cluster.process.wait(60) == 0
    assert not any("Traceback" in line for line in cluster.said)
    assert any("none can be kept" in line for line in cluster.said)


def test_a_cluster_outlives_whoever_reads_its_output(tmp_path: Path) -> None:
    """Rich, for one, ends a process whose stderr nobody reads."""
    heard, spoken = os.pipe()
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0", "--prefill", "0", "--json"],
        env=environment_of(tmp_path),
        stdout=subprocess.PIPE,
        stderr=spoken,
        text=True,
    )
    os.close(spoken)
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        process.stdout.close()
        os.close(heard)
        before = children_of(process.pid)
        worker = next(pid for pid in before if "decode" in Path(f"/proc/{pid}/cmdline").read_text())
        os.kill(worker, signal.SIGKILL)
        assert until(lambda: len(children_of(process.pid) - {worker}) == len(before))
        assert process.poll() is None
        assert Path(ready["run_dir"]).exists()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def children_of(pid: int) -> set[int]:
    return {each.pid for each in psutil.Process(pid).children() if is_alive(each.pid)}


def until(condition: Callable[[], bool], *, within_s: float = 60.0) -> bool:
    deadline = time.monotonic() + within_s
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds


@pytest.mark.prove
def test_a_stopped_launcher_kills_nothing(tmp_path: Path) -> None:
    with serving(tmp_path) as cluster:
        before = cluster.pids()
        cluster.process.send_signal(signal.SIGSTOP)
        time.sleep(12)  # how long it is stopped is what is tried
        cluster.process.send_signal(signal.SIGCONT)
        assert not until(lambda: cluster.pids() != before, within_s=5)
        assert serving_now(cluster) == {"prefill-0", "decode-0"}


@pytest.mark.prove
def test_stopped_workers_are_back_in_five_seconds_and_a_router_after_ten(tmp_path: Path) -> None:
    with serving(tmp_path) as cluster:
        took = [seconds_to_replace(cluster, "decode-0") for _ in range(5)]
        print("a stopped decode worker serves again after", [f"{each:.1f} s" for each in took])
        assert statistics.median(took) < 5.0
        assert seconds_to_replace(cluster, "router") > 10.0


def seconds_to_replace(cluster: Served, name: str) -> float:
    old, began = cluster.pids()[name], time.monotonic()
    os.kill(old, signal.SIGSTOP)
    assert until(lambda: cluster.pids()[name] != old)
    return time.monotonic() - began


def test_a_cluster_is_served_as_its_file_says_and_found_behind_an_open_door(
    tmp_path: Path,
) -> None:
    secrets = tmp_path / "secrets.yaml"
    create_secrets(secrets)
    file = tmp_path / "cluster.yaml"
    file.write_text(
        "apiVersion: penstock/v1\nkind: Cluster\nmetadata: {name: from-a-file}\n"
        "spec:\n"
        "  model: mine\n"
        "  pools:\n"
        "    - {name: prompts, role: prefill, kvPool: 8MiB}\n"
        "    - {name: answers, role: decode, numBlocks: 256, maxWorkers: 2}\n"
        "  limits: {maxOutputTokens: 5}\n"
        "  secretsFile: secrets.yaml\n"
    )
    flags = ("--file", str(file), "--host", "0.0.0.0", "--insecure")
    with serving(tmp_path, *flags) as served, Client(served.address) as client:
        assert "pool 'answers' stays at 1 workers" in "".join(served.said)
        assert served.ready["model"] == "mine"
        assert Path(served.ready["run_dir"]).name.startswith("penstock-from-a-file-")
        assert set(served.status()) == {"prompts-0", "answers-0"}
        assert load_secrets(Path(served.ready["run_dir"]) / "secrets.yaml") == load_secrets(secrets)
        answer = client.generate(messages=QUESTION, max_tokens=5).result()
        assert answer.text
        with pytest.raises(PenstockError, match="5"):
            client.generate(messages=QUESTION, max_tokens=6).result()
        drained = served.penstock("drain", "prompts-0", "--wait")
        assert drained.returncode == 0, drained.stderr
        differs = served.penstock("cluster", "diff", "-f", str(file))
        assert differs.returncode == 1, differs.stderr
        assert set(differs.stdout.splitlines()) == {
            "spec.routers.ports[0]: 50051 -> 0",
            "spec.routers.httpPorts: null -> absent",
            "spec.routers.httpPorts[0]: absent -> 0",
            "spec.routers.internalPorts[0]: 50052 -> 0",
            "spec.routers.bind: 127.0.0.1 -> 0.0.0.0",
            "spec.insecure: false -> true",
            "'penstock serve' reads its file at its start: 'penstock stop', then serve again.",
        }
