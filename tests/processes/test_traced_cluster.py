"""A cluster of processes as its file describes it: its traces at a collector, and its logs: neither
a prompt nor a secret stands in them."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest

from penstock.v1 import inference_pb2 as pb
from penstock.v1 import inference_pb2_grpc
from tests.deploy.served import COMMAND, Served, environment_of, serving
from tests.trace_collector import Collected, Collector, children, collecting, named, uncovered_s

PLANTED = "zebrafish"  # in prompts
PROMPT = f"{PLANTED} " * 40
TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALLERS = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01", "tracestate": "rojo=1"}
PROCESSES = {"router", "prefill-0", "decode-0"}
STABLE = {"time", "level", "process", "logger", "message"}
PARTS = ("router", "decode_worker", "prefill_worker", "queue", "prefill", "kv_transfer", "decode")

pytestmark = pytest.mark.slow


@dataclass
class Traced:
    served: Served
    collector: Collector
    key: str
    secrets: list[str]

    def logs(self) -> dict[str, str]:
        folder = Path(self.served.ready["log_dir"])
        return {each.name: each.read_text() for each in folder.rglob("*.log*")}

    def ask(self, max_tokens: int = 8, **more: Any) -> Any:
        """The raw answer, with its headers."""
        base = f"http://{self.served.ready['http']}/v1"
        options: Any = {"base_url": base, "api_key": self.key, "max_retries": 0, "timeout": 30.0}
        with openai.OpenAI(**options) as client:
            return client.completions.with_raw_response.create(
                model="penstock-tiny", prompt=PROMPT, max_tokens=max_tokens, temperature=0, **more
            )


@contextmanager
def traced(home: Path, *, log_format: str) -> Iterator[Traced]:
    def penstock(*words: str) -> str:
        command, environment = [*COMMAND, *words], environment_of(home)
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()

    keys, secrets = home / "keys.json", home / "secrets.yaml"
    key = penstock("keys", "add", str(keys), "--tenant", "acme", "--id", "acme")
    penstock("secrets", str(secrets))
    with collecting() as collector:
        path = home / "cluster.yaml"
        path.write_text(
            "apiVersion: penstock/v1\nkind: Cluster\nmetadata: {name: traced}\nspec:\n"
            f"  secretsFile: {secrets}\n  routers: {{keysFile: {keys}, ports: [0]}}\n"
            f"  tracing: {{endpoint: '{collector.endpoint}', share: 1}}\n"
            f"  log: {{level: debug, levels: {{asyncio: info}}, format: {log_format}}}\n"
        )
        with serving(home, "--file", str(path), "--disaggregate", "always") as served:
            told = [line.split(":", 1)[1].strip(" '\"") for line in _secret_lines(secrets)]
            yield Traced(served, collector, key, [key, *told])


def _secret_lines(path: Path) -> list[str]:
    lines = path.read_text().splitlines()
    return [line for line in lines if line.startswith(("cluster_token", "hash_secret"))]


def check_tree(spans: list[Collected]) -> None:
    """Parents, times in order, and no time of which nobody says what it was."""
    by_id = {span.span_id: span for span in spans}
    router = named(spans, "router")
    assert [span for span in spans if span.parent_id not in by_id] == [router]
    for span in spans:
        assert router.start_ns <= span.start_ns <= span.end_ns, span
        above = by_id.get(span.parent_id, router)
        assert above.start_ns <= span.start_ns, span
    worker, prefill = named(spans, "decode_worker"), named(spans, "prefill_worker")
    assert {part.name for part in children(spans, router)} == {
        "admission",
        "placement",
        "decode_worker",
    }
    assert {part.name for part in children(spans, prefill)} == {"queue", "prefill"}
    assert {part.name for part in children(spans, worker)} == {
        "prefill_worker",
        "kv_transfer",
        "decode",
    }
    # What passes between two processes is nobody's: of a second, on a machine that is starved.
    assert uncovered_s(spans, router) < 1.0
    assert uncovered_s(spans, worker) < 1.0
    assert {(span.service, span.instance) for span in spans if span is not router} >= {
        ("penstock-worker", "prefill-0"),
        ("penstock-worker", "decode-0"),
    }


def asked_by_both_doors(cluster: Traced) -> None:
    raw = cluster.ask(extra_headers=CALLERS)
    spans = cluster.collector.whole(TRACE_ID, *PARTS)
    check_tree(spans)
    router = named(spans, "router")
    assert router.parent_id == SPAN_ID
    assert {span.state for span in spans} == {"rojo=1"}
    assert raw.headers["traceresponse"] == f"00-{TRACE_ID}-{router.span_id}-01"
    assert router.attributes["penstock.tenant"] == "acme"
    usage = raw.parse().usage
    assert router.attributes["gen_ai.usage.output_tokens"] == usage.completion_tokens
    assert router.attributes["gen_ai.usage.input_tokens"] == usage.prompt_tokens
    assert router.attributes["gen_ai.request.model"] == "penstock-tiny"

    other = "b" * 32
    metadata = (
        ("authorization", f"Bearer {cluster.key}"),
        ("traceparent", f"00-{other}-{SPAN_ID}-01"),
    )
    with grpc.insecure_channel(cluster.served.address) as channel:
        inference = inference_pb2_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]
        request = pb.GenerateRequest(text=f"and {PROMPT}", stop={"max_tokens": 4})
        call = inference.Generate(request, metadata=metadata, timeout=30)
        assert list(call)[-1].HasField("finished")
        assert dict(call.initial_metadata())["traceresponse"].split("-")[1] == other
    check_tree(cluster.collector.whole(other, *PARTS))


def refused_and_hostile(cluster: Traced) -> None:
    hostile = {"traceparent": f"00-{'c' * 32}-{SPAN_ID}-01-{PLANTED}", "tracestate": PLANTED}
    raw = cluster.ask(extra_headers=hostile)
    trace_id = raw.headers["traceresponse"].split("-")[1]
    assert trace_id != "c" * 32
    assert named(cluster.collector.whole(trace_id, *PARTS), "router").parent_id == ""
    with pytest.raises(openai.BadRequestError) as refused:
        cluster.ask(max_tokens=10**6)
    headers = refused.value.response.headers
    spans = cluster.collector.whole(headers["traceresponse"].split("-")[1], "router")
    router = named(spans, "router")
    assert router.is_error
    assert router.attributes["error.type"] == "INVALID_REQUEST"


def nothing_is_given_away(cluster: Traced) -> None:
    logs = cluster.logs()
    assert {name.removesuffix(".log") for name in logs} >= PROCESSES
    everything = "".join(logs.values()) + "".join(cluster.served.said)
    everything += cluster.collector.raw.decode(errors="replace")
    assert len(cluster.secrets) == 3
    for planted in (PLANTED, *cluster.secrets):
        assert len(planted) > 8
        assert planted not in everything, planted
    assert TRACE_ID in logs["router.log"]


@pytest.mark.prove
def test_traces_and_logs_as_text(tmp_path: Path) -> None:
    with traced(tmp_path, log_format="text") as cluster:
        asked_by_both_doors(cluster)
        refused_and_hostile(cluster)
        nothing_is_given_away(cluster)


def test_traces_and_logs_as_json(tmp_path: Path) -> None:
    with traced(tmp_path, log_format="json") as cluster:
        asked_by_both_doors(cluster)
        refused_and_hostile(cluster)
        nothing_is_given_away(cluster)
        for name, said in cluster.logs().items():
            lines = [json.loads(line) for line in said.splitlines()]
            assert all(line.keys() >= STABLE for line in lines), name
            assert {line["process"] for line in lines} == {name.removesuffix(".log")}
        [first, *_] = [
            line
            for line in map(json.loads, cluster.logs()["router.log"].splitlines())
            if line["level"] == "request"
        ]
        assert first["trace_id"] == TRACE_ID
        merged = cluster.served.penstock("logs", "--json").stdout.splitlines()
        assert {json.loads(line)["process"] for line in merged} >= PROCESSES
        only = cluster.served.penstock("logs", "router").stdout.splitlines()
        assert {json.loads(line)["process"] for line in only} == {"router"}
