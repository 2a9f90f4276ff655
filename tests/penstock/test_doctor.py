"""`penstock doctor`: checks on invented facts, then the command against a scripted cluster."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from cluster import host
from cluster.checkpoint_review import CheckpointReview, Note
from cluster.errors import DeadlineExceeded, DigestMismatch, Overloaded, TransferFailed
from cluster.facts import Folder, ProcessFacts, StoreAnswer
from cluster.facts_codec import facts_to_pb
from cluster.proof import Doorkeeper, audience_of
from cluster.types import (
    Fingerprint,
    Incarnation,
    KvLayout,
    Member,
    Role,
    WorkerAddress,
    WorkerId,
)
from cluster.wire_version import WIRE_VERSION
from cluster.worker_codec import member_to_pb
from deploy.doctor.cluster_checks import callers, certificate, check_cluster, front_door
from deploy.doctor.examination import HERE, large_tokens
from deploy.doctor.finding import Examined, Finding, Probed, Severity
from deploy.doctor.pair_checks import PairProbe, faster_transports, judge
from deploy.doctor.process_checks import check_process, ray_sockets, reach
from deploy.exposure import Reached, readable
from deploy.on_machine import Listener, ray_name
from engine.config import ATTENTION, KERNEL_MISSING
from kv_transfer.doors import DOORS
from penstock.cli.app import run
from penstock.cli.notes import LocalNote, noted, this_machine
from penstock.v1 import worker_pb2 as pb
from penstock.v1 import worker_pb2_grpc
from tests.doors import ThreadedDoor

FACTS = ProcessFacts(
    unix_s=1e9,
    machine="machine-a",
    versions={"penstock": "1.0", "grpcio": "2.0", "torch": "3.0"},
    wire_version=WIRE_VERSION,
    memlock_bytes=8 << 20,
    max_open_files=1024,
    num_open_files=20,
    num_cpus=4,
    num_threads=1,
    run_dir=Folder(
        path="/dev/shm/x", file_system="tmpfs", num_bytes=1 << 40, free_bytes=1 << 39, mode=0o700
    ),
    listening=("127.0.0.1:7000",),
    secrets_mode=0o600,
    store=None,
    checks_content=True,
    memory_bytes_per_s=10e9,
)
LAYOUT = KvLayout(num_layers=4, num_blocks=1024, block_size=16, num_kv_heads=4, head_dim=64)
FINGERPRINT = Fingerprint(
    model_digest="m", tokenizer_digest="t", template_digest="c", hash_grain=16, layout=LAYOUT
)


def member(name: str, *transports: str, address: str = "127.0.0.1:7000") -> Member:
    return Member(
        worker=WorkerAddress(
            worker_id=WorkerId(name),
            incarnation=Incarnation(f"{name}-life"),
            address=address,
            transports=dict.fromkeys(transports or ("shared_memory",), "there"),
            fingerprint=FINGERPRINT,
        ),
        role=Role.DECODE if name.startswith("decode") else Role.PREFILL,
        model="m",
        context_length=512,
        max_sequences=4,
    )


def worker(name: str = "decode-0", *transports: str, **facts: Any) -> Examined:
    return Examined(
        name=name,
        address="127.0.0.1:7000",
        member=member(name, *transports),
        facts=replace(FACTS, **facts),
        memory_bytes_per_s=10e9,
        num_free_blocks=1000,
    )


def found(findings: Iterator[Finding], check: str) -> list[Finding]:
    return [finding for finding in findings if finding.check == check]


def test_a_healthy_worker_passes_every_check() -> None:
    findings = list(check_process(worker()))
    assert {finding.severity for finding in findings} == {Severity.PASS}
    assert len({finding.check for finding in findings}) == 9, "all but the store, which it has not"


REVIEW = CheckpointReview(
    ignored=(Note("config.json", "training", ("attention_dropout", "initializer_range")),),
    unknown=(Note("tokenizer_config.json", "", ("made_by",)),),
)


def test_what_of_the_model_s_files_is_ignored_is_listed() -> None:
    router = Examined(name="router", address="a:1", facts=replace(FACTS, review=REVIEW))
    said = {f.what: f.severity for f in found(check_process(router), "checkpoint")}
    assert said == {
        "made_by in the model's tokenizer_config.json: nobody here knows it, it is ignored": (
            Severity.WARN
        ),
        "attention_dropout, initializer_range in the model's config.json: ignored (training)": (
            Severity.PASS
        ),
    }
    plain = replace(router, facts=replace(FACTS, review=CheckpointReview()))
    [all_followed] = found(check_process(plain), "checkpoint")
    assert all_followed.severity is Severity.PASS


FOLDER = FACTS.run_dir
assert FOLDER is not None


@pytest.mark.parametrize(
    ("check", "facts", "severity", "said"),
    [
        ("memlock", {"memlock_bytes": 1 << 20}, Severity.WARN, "RDMA cannot register it"),
        ("memlock", {"memlock_bytes": None}, Severity.PASS, "unlimited"),
        ("open_files", {"num_open_files": 1000}, Severity.WARN, "1000 of 1024"),
        ("open_files", {"max_open_files": None}, Severity.PASS, "any number"),
        ("secrets_file", {"secrets_mode": 0o640}, Severity.FAIL, "mode 0640"),
        ("secrets_file", {"secrets_mode": None}, Severity.WARN, "gone"),
        ("run_dir", {"run_dir": None}, Severity.FAIL, "gone"),
        ("run_dir", {"run_dir": replace(FOLDER, file_system="ext4")}, Severity.WARN, "ext4"),
        ("run_dir", {"run_dir": replace(FOLDER, free_bytes=1 << 20)}, Severity.WARN, "1.0 MiB"),
        ("run_dir", {"run_dir": replace(FOLDER, mode=0o755)}, Severity.WARN, "mode 0755"),
        ("sockets", {"listening": ("0.0.0.0:1",)}, Severity.WARN, "everyone"),
        ("sockets", {"listening": ("[::]:1",)}, Severity.WARN, "everyone"),
        ("sockets", {"listening": ("10.1.2.3:1",)}, Severity.WARN, "its private network"),
        ("sockets", {"listening": ("8.8.8.8:1",)}, Severity.WARN, "the internet"),
        ("sockets", {"listening": ("127.0.0.1:1", "[::1]:2")}, Severity.PASS, "machine alone"),
        ("sockets", {"listening": ("8.8.8.8:1",), "tls_ports": {1}}, Severity.PASS, "under TLS"),
        ("sockets", {"listening": ("8.8.8.8:1",), "tls_ports": {2}}, Severity.WARN, "without TLS"),
        ("digests", {"checks_content": False}, Severity.WARN, "does not check them"),
        ("attention", {"choices": {ATTENTION: "native"}}, Severity.PASS, "is native"),
        ("attention", {"choices": {ATTENTION: "torch, on cuda"}}, Severity.PASS, "on cuda"),
        (
            "attention",
            {"choices": {ATTENTION: f"{KERNEL_MISSING}: no compiler"}},
            Severity.WARN,
            "no compiler",
        ),
        (
            "measured",
            {"choices": {"product 8x8": "packed", "product 8x9": "packed", "copies": "pieces"}},
            Severity.PASS,
            "product 8x8, product 8x9: packed; copies: pieces",
        ),
        (
            "store",
            {"store": StoreAnswer(address="r:1", seconds=0.001, problem="refused")},
            Severity.FAIL,
            "refused",
        ),
        ("store", {"store": StoreAnswer(address="r:1", seconds=0.2)}, Severity.WARN, "200 ms"),
        ("store", {"store": StoreAnswer(address="r:1", seconds=0.001)}, Severity.PASS, "r:1"),
    ],
)
def test_a_check_of_a_process(
    check: str, facts: dict[str, Any], severity: Severity, said: str
) -> None:
    one = worker("decode-0", "nixl", "shared_memory", **facts)
    [finding] = found(check_process(one), check)
    assert finding.severity is severity
    assert said in finding.what
    assert bool(finding.fix) == (severity is not Severity.PASS), "what is wrong can be mended"


def test_locked_memory_matters_to_rdma_alone() -> None:
    [finding] = found(check_process(worker(memlock_bytes=1)), "memlock")
    assert finding.severity is Severity.PASS


@pytest.mark.parametrize(
    ("ahead_s", "round_trip_s", "severity"),
    [
        (0.0, 0.01, Severity.PASS),
        (0.9, 0.01, Severity.WARN),
        (-0.9, 0.01, Severity.WARN),
        (0.9, 1.0, Severity.PASS),  # the way may explain it
    ],
)
def test_a_clock_is_wrong_beyond_what_the_way_explains(
    ahead_s: float, round_trip_s: float, severity: Severity
) -> None:
    one = replace(worker(), clock_ahead_s=ahead_s, round_trip_s=round_trip_s)
    [finding] = found(check_process(one), "clock")
    assert finding.severity is severity


def test_a_worker_that_does_not_answer_is_one_failure_and_not_ten() -> None:
    one = replace(worker(), facts=None, problem="connection refused")
    findings = [f for f in check_process(one) if f.severity is not Severity.PASS]
    assert [(f.check, f.severity) for f in findings] == [("reachable", Severity.FAIL)]
    assert "connection refused" in findings[0].what


def test_who_may_reach_a_socket() -> None:
    assert reach("127.0.0.1:80") == reach("[::1]:80") == "this machine"
    assert reach("192.168.0.1:80") == "its private network"


@pytest.mark.parametrize(
    ("other", "check", "severity", "said"),
    [
        ({"wire_version": WIRE_VERSION - 2}, "versions", Severity.FAIL, "wire versions differ"),
        ({"wire_version": WIRE_VERSION - 1}, "versions", Severity.WARN, "wire versions differ"),
        ({"versions": {"penstock": "1.1"}}, "versions", Severity.WARN, "1.0 at decode-0; 1.1 at"),
        ({"versions": {"nixl": "1"}}, "versions", Severity.PASS, "same versions"),
        ({"num_threads": 4}, "cpus", Severity.WARN, "5 threads on 4 CPUs"),
        ({"num_threads": 4, "machine": "machine-b"}, "cpus", Severity.PASS, "4 threads on 4"),
    ],
)
def test_a_check_of_all_together(
    other: dict[str, Any], check: str, severity: Severity, said: str
) -> None:
    everyone = [worker(), worker("prefill-0", **other)]
    findings = found(check_cluster(everyone, ["decode-0"]), check)
    assert any(f.severity is severity and said in f.what for f in findings), findings
    assert all(f.severity in (severity, Severity.PASS) for f in findings)


def test_a_worker_that_was_started_and_is_not_known_fails() -> None:
    findings = list(check_cluster([worker()], ["decode-0", "decode-1"]))
    assert [f.subject for f in findings if f.severity is Severity.FAIL] == ["decode-1"]


def moved(transport: str = "shared_memory", num_bytes: int = 64 << 20, **changes: Any) -> Probed:
    values = {"seconds": 0.02, "write_s": 0.01, **changes}
    return Probed(transport=transport, num_bytes=num_bytes, **values)


def probe(**changes: Any) -> PairProbe:
    values = {"small": moved(num_bytes=1 << 15, seconds=0.003), "large": moved(), **changes}
    return PairProbe(source=worker("prefill-0"), receiver=worker(), **values)


def test_without_a_measured_memory_no_speed_is_expected() -> None:
    slow = probe(large=moved(write_s=9.0))
    unmeasured = replace(slow, source=replace(worker("prefill-0"), memory_bytes_per_s=0.0))
    assert judge(slow).severity is Severity.WARN
    assert judge(unmeasured).severity is Severity.PASS


@pytest.mark.parametrize(
    ("changes", "severity", "said"),
    [
        ({}, Severity.PASS, "67,108,864 bytes arrived"),
        ({"large": moved(write_s=0.5)}, Severity.WARN, "0.13 GB/s"),
        ({"large": moved("tcp", write_s=0.05)}, Severity.PASS, "by tcp"),
        ({"large": moved("tcp", write_s=0.5)}, Severity.WARN, "slow for it"),
        ({"small": moved(seconds=0.5)}, Severity.WARN, "500 ms"),
        (
            {"large": moved("tcp"), "passed_over": {"shared_memory": "no such file"}},
            Severity.WARN,
            "uses tcp, although both have shared_memory, which is faster: no such file",
        ),
        ({"failure": DigestMismatch("layer 3")}, Severity.FAIL, "as they were sent: layer 3"),
        ({"failure": TransferFailed("no route")}, Severity.FAIL, "no bytes move: no route"),
        ({"failure": DeadlineExceeded("probe")}, Severity.FAIL, "in time"),
        ({"failure": Overloaded("no block")}, Severity.WARN, "too busy"),
        ({"small": None, "large": None}, Severity.FAIL, "an end does not answer"),
        ({"is_skipped": True}, Severity.FAIL, "the time was up"),
    ],
)
def test_what_a_probe_tells_of_a_pair(
    changes: dict[str, Any], severity: Severity, said: str
) -> None:
    result = judge(probe(**changes))
    assert result.severity is severity
    assert said in " ".join(finding.what for finding in result.findings)
    assert all(bool(f.fix) == (f.severity is not Severity.PASS) for f in result.findings)


def test_a_transport_of_one_machine_is_not_missed_between_two() -> None:
    ends = [worker(name, "shared_memory", "tcp") for name in ("prefill-0", "decode-0")]
    apart = [ends[0], replace(ends[1], facts=replace(FACTS, machine="machine-b"))]
    slowest = list(DOORS)[-1]
    if slowest != "shared_memory":
        assert "shared_memory" in faster_transports(*ends, slowest)
    assert "shared_memory" not in faster_transports(*apart, slowest)
    assert faster_transports(*ends, "shared_memory") == []
    wished = replace(ends[1], facts=replace(FACTS, required_transport="tcp"))
    assert faster_transports(ends[0], wished, "tcp") == ()


def test_a_probe_takes_at_most_half_of_what_is_free() -> None:
    few = replace(worker(), num_free_blocks=10)
    assert large_tokens(worker("prefill-0"), few) == 5 * 16
    token_bytes = LAYOUT.num_layers * 2 * LAYOUT.slot_bytes
    assert large_tokens(worker("prefill-0"), worker()) == min((64 << 20) // token_bytes, 8000)


# -- the command ---------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class FakeCluster(ThreadedDoor, worker_pb2_grpc.ClusterServicer, worker_pb2_grpc.WorkerServicer):
    """A router and two workers behind one port."""

    address: str = ""
    facts: ProcessFacts = field(default_factory=lambda: replace(FACTS, versions=host.versions()))
    workers: list[Member] = field(default_factory=list)
    transport: str = "shared_memory"
    probes: list[pb.ProbeRequest] = field(default_factory=list)
    refuse: Callable[[pb.ProbeRequest, grpc.ServicerContext], None] | None = None
    doorkeeper: Doorkeeper = field(default_factory=lambda: Doorkeeper("t" * 20))
    heard: set[str] = field(default_factory=set)  # values of metadata

    def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusResponse:
        self.heard |= {str(value) for _, value in context.invocation_metadata()}
        self.check(context, "/penstock.v1.Cluster/Status")
        load = pb.LoadReport(num_free_blocks=100, num_blocks=1024)
        workers = [
            pb.WorkerStatus(member=member_to_pb(each), serving=True, load=load)
            for each in self.workers
        ]
        return pb.StatusResponse(workers=workers)

    def Diagnose(self, request: pb.DiagnoseRequest, context: Any) -> pb.DiagnoseResponse:
        return facts_to_pb(replace(self.facts, unix_s=time.time()))

    def Probe(self, request: pb.ProbeRequest, context: Any) -> pb.ProbeResponse:
        self.probes.append(request)
        if self.refuse is not None:
            self.refuse(request, context)
        num_bytes = request.num_tokens * 16384
        return pb.ProbeResponse(
            transport=self.transport,
            num_tokens=request.num_tokens,
            num_bytes=num_bytes,
            seconds=0.002 + num_bytes / 4e9,
            write_seconds=num_bytes / 4e9,
        )


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("PENSTOCK_ADDRESS", raising=False)
    cluster = FakeCluster()
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        worker_pb2_grpc.add_ClusterServicer_to_server(cluster, server)
        worker_pb2_grpc.add_WorkerServicer_to_server(cluster, server)
        worker_pb2_grpc.add_DoorServicer_to_server(cluster, server)
        cluster.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        cluster.workers = [
            member(name, address=cluster.address) for name in ("decode-0", "prefill-0")
        ]
        cluster.doorkeeper.audience = audience_of(cluster.workers[0].worker)
        server.start()
        run_dir = tmp_path / "run"
        run_dir.mkdir()
        secrets = run_dir / "secrets.yaml"
        secrets.touch(mode=0o600)
        secrets.write_text(f"cluster_token: {'t' * 20}\nhash_secret: '{'0' * 32}'\n")
        note = LocalNote(
            address=cluster.address, run_dir=str(run_dir), pid=os.getpid(), machine=this_machine()
        )
        with noted(note):
            yield cluster
        server.stop(None).wait()


@pytest.fixture
def doctor(fake: FakeCluster, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            run(["doctor", *arguments])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


def test_a_front_door_that_others_reach_is_warned_of() -> None:
    [open_to_all] = front_door("0.0.0.0:50051", is_insecure=True)
    assert open_to_all.severity is Severity.WARN
    assert "INSECURE" in open_to_all.what
    [readable] = front_door("0.0.0.0:50051", is_insecure=False, is_plain=True)
    assert readable.severity is Severity.WARN
    assert "API keys and prompts can be read" in readable.what
    [closed] = front_door("127.0.0.1:50051", is_insecure=False)
    assert closed.severity is Severity.PASS
    assert list(front_door("", is_insecure=False)) == []  # a router that does not say it


def test_what_the_front_doors_show_is_judged_by_its_end_and_its_files() -> None:
    [under_tls] = front_door("0.0.0.0:50051", is_insecure=False, has_tls=True)
    assert (under_tls.severity, "under TLS" in under_tls.what) == (Severity.PASS, True)
    names = ("llm.example.com", "10.0.0.5")

    def judged(left_days: float, error: str = "") -> list[Finding]:
        left_s = left_days * 86_400
        return list(certificate(names, left_s=left_s, asks_clients=False, error=error))

    [fine] = judged(60.0)
    assert fine.severity is Severity.PASS
    assert "llm.example.com, 10.0.0.5 holds for 60 days" in fine.what
    [soon] = judged(3.0)
    assert (soon.severity, "ends in 3.0 days" in soon.what) == (Severity.WARN, True)
    [over] = judged(-2.0)
    assert (over.severity, "ended 2.0 days ago" in over.what) == (Severity.FAIL, True)
    stale, _ = judged(60.0, "They are no pair.")
    assert (stale.severity, "They are no pair." in stale.what) == (Severity.FAIL, True)


def test_keys_that_are_not_as_their_file_says_are_a_failure() -> None:
    assert list(callers("", num_keys=None, num_unchecked=0)) == []
    [fine] = callers("", num_keys=2, num_unchecked=0)
    assert (fine.severity, fine.what) == (Severity.PASS, "2 API keys are in force")
    stale, unchecked = callers("It is not valid JSON.", num_keys=2, num_unchecked=4)
    assert stale.severity is Severity.FAIL
    assert "It is not valid JSON." in stale.what
    assert unchecked.severity is Severity.WARN
    assert "4 times" in unchecked.what


def test_every_socket_of_ray_is_listed_by_who_may_reach_it() -> None:
    listeners = [
        Listener("gcs/gcs_server", 7, ("10.0.0.1:6379", "127.0.0.1:44217")),
        Listener("raylet/raylet", 8, ("10.0.0.1:40000",)),
    ]
    near, here = ray_sockets("10.0.0.1", listeners, has_token=True)
    assert (near.severity, here.severity) == (Severity.WARN, Severity.PASS)
    assert "10.0.0.1:6379 (gcs/gcs_server, pid 7), 10.0.0.1:40000 (raylet/raylet" in near.what
    assert "its private network may reach it: its token, sent in clear text," in near.what
    assert here.what == "it listens on 127.0.0.1:44217 (gcs/gcs_server, pid 7): this machine alone"
    bare, _ = ray_sockets("10.0.0.1", listeners, has_token=False)
    assert "nothing is asked for" in bare.what
    assert "RAY_AUTH_MODE=token" in bare.fix


def test_processes_of_ray_are_told_by_what_they_run() -> None:
    packages = "/srv/.venv/lib/python3.11/site-packages/ray"
    raylet = [f"{packages}/core/src/ray/raylet/raylet", "--node_manager_port=0"]
    assert ray_name(raylet) == "raylet/raylet"
    agent = ["/srv/.venv/bin/python", "-u", f"{packages}/dashboard/agent.py", "--x"]
    assert ray_name(agent) == "dashboard/agent.py"
    assert ray_name(["ray::PlacedProcess.state", ""]) == "ray::PlacedProcess.state"
    assert ray_name(["/ray/bin/python", "-m", "router"]) == ""
    assert ray_name([""]) == ""


def test_a_healthy_cluster_ends_with_0_and_a_row_a_pair(fake: FakeCluster, doctor: Any) -> None:
    code, out, err = doctor()
    assert code == 0, out
    row = next(line.split() for line in out.splitlines() if line.startswith("prefill-0"))
    assert row[:3] == ["prefill-0", "decode-0", "shared_memory"]
    assert float(row[3]) == pytest.approx(4.0, rel=0.1)
    assert row[-1] == "pass"
    assert "0 warn, 0 fail" in out
    assert err == "", "no progress where nobody watches"
    assert not any("t" * 20 in said for said in fake.heard)  # it was proven, not told
    assert {request.source.worker_id for request in fake.probes} == {"prefill-0"}


def test_what_can_be_read_on_its_way_is_told_with_who_says_it() -> None:
    here = Reached(name="a", address="127.0.0.1:1", transports=["tcp", "nixl"])
    there = Reached(name="b", address="10.0.0.2:1", transports=["shared_memory", "tcp", "nixl"])
    assert list(readable("", [here], can_encrypt=False)) == []
    assert list(readable("127.0.0.1:2", [here], can_encrypt=False)) == []
    [by_nixl] = readable("10.0.0.1:2", [here, there], can_encrypt=True)
    assert by_nixl == "KV of b by nixl can be read on its way: it has no TLS"
    calls, by_tcp, by_nixl = readable("10.0.0.1:2", [here, there], can_encrypt=False)
    assert calls.startswith("calls to the router, b, prompts included, can be read on their way")
    assert by_tcp.startswith("KV of b by tcp")
    assert "no authority" in calls


def test_scripts_can_rely_on_the_keys_of_its_json(doctor: Any) -> None:
    code, out, _ = doctor("--json")
    said = json.loads(out)
    assert code == 0
    assert set(said) == {"address", "severity", "pairs", "findings"}
    assert set(said["pairs"][0]) == {
        "source",
        "receiver",
        "severity",
        "transport",
        "num_bytes",
        "bytes_per_second",
        "latency_seconds",
        "findings",
    }
    keys = {"severity", "check", "subject", "what", "fix"}
    assert all(set(each) == keys for each in said["findings"] + said["pairs"][0]["findings"])
    assert {each["severity"] for each in said["findings"]} == {"pass"}
    assert {each["check"] for each in said["findings"]} == {
        "reachable",
        "serving",
        "sockets",
        "encryption",
        "secrets_file",
        "run_dir",
        "memlock",
        "open_files",
        "clock",
        "digests",
        "versions",
        "cpus",
    }
    assert HERE in {each["subject"] for each in said["findings"]}


def test_a_warning_alone_is_no_failure(fake: FakeCluster, doctor: Any) -> None:
    fake.facts = replace(fake.facts, checks_content=False)
    code, out, _ = doctor()
    assert code == 0
    assert "warn  digests       decode-0, prefill-0:" in out
    assert "-> Set 'digest: content'" in out


def test_a_pair_that_moves_nothing_fails_with_what_to_do(fake: FakeCluster, doctor: Any) -> None:
    fake.refuse = lambda _, context: context.abort(grpc.StatusCode.DATA_LOSS, "layer 1 differs")
    code, out, _ = doctor()
    assert code == 8
    row = next(line for line in out.splitlines() if line.startswith("prefill-0"))
    assert row.split()[-1] == "fail"
    assert "layer 1 differs" in out
    assert "-> " in out


def test_a_pair_that_passed_a_faster_transport_over_says_why(
    fake: FakeCluster, doctor: Any
) -> None:
    def refuses(request: pb.ProbeRequest, context: grpc.ServicerContext) -> None:
        if request.transport == "shared_memory":
            context.abort(grpc.StatusCode.ABORTED, "another pid namespace")

    fake.workers = [
        member(name, "tcp", "shared_memory", address=fake.address)
        for name in ("decode-0", "prefill-0")
    ]
    fake.refuse, fake.transport = refuses, "tcp"
    code, out, _ = doctor()
    assert code == 0, "it works"
    assert "both have shared_memory, which is faster" in out
    assert "another pid namespace" in out
    row = next(line.split() for line in out.splitlines() if line.startswith("prefill-0"))
    assert (row[2], row[-1]) == ("tcp", "warn")


def test_workers_that_can_never_exchange_kv_are_not_asked_to(
    fake: FakeCluster, doctor: Any
) -> None:
    decode, prefill = fake.workers
    other = replace(decode.worker, fingerprint=replace(FINGERPRINT, model_digest="another"))
    fake.workers = [replace(decode, worker=other), prefill]
    code, out, _ = doctor()
    assert code == 8
    assert "model_digest: m and another" in out
    assert fake.probes == []


def test_a_worker_that_is_gone_fails_and_the_others_are_still_examined(
    fake: FakeCluster, doctor: Any
) -> None:
    fake.workers.append(member("decode-1", address="127.0.0.1:1"))
    code, out, _ = doctor("--json")
    said = json.loads(out)
    assert code == 8
    broken = [each["subject"] for each in said["findings"] if each["severity"] == "fail"]
    assert broken == ["decode-1"]
    pairs = {pair["receiver"]: pair["severity"] for pair in said["pairs"]}
    assert pairs == {"decode-0": "pass", "decode-1": "fail"}


@pytest.mark.slow
def test_the_time_for_all_of_it_is_bounded(fake: FakeCluster, doctor: Any) -> None:
    def stalls(request: pb.ProbeRequest, context: grpc.ServicerContext) -> None:
        released.wait(10)

    released = threading.Event()
    fake.refuse = stalls
    begin = time.monotonic()
    code, out, _ = doctor("--timeout", "1")
    released.set()
    assert code == 8
    assert "nothing arrived in time" in out
    assert time.monotonic() - begin < 4


def test_no_cluster_and_no_secrets_say_what_to_give(doctor: Any) -> None:
    code, _, err = doctor("--address", "127.0.0.1:1")
    assert code == 4
    assert "--secrets-file" in err


def test_a_router_that_is_gone_is_unreachable(fake: FakeCluster, doctor: Any) -> None:
    secrets = Path(os.environ["HOME"]) / "run" / "secrets.yaml"
    code, _, err = doctor("--address", "127.0.0.1:1", "--secrets-file", str(secrets))
    assert code == 4
    assert "penstock serve" in err
