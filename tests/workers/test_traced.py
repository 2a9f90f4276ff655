"""One trace a request, through router, decode worker and prefill worker: made of what is known at
its end, whatever that is."""

import asyncio
import itertools
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import grpc.aio
import pytest

from cluster import tracing as cluster_tracing
from cluster.tracing import TraceSpan, Tracing
from decode_worker import trace as decode_trace
from penstock.v1 import inference_pb2 as pb
from router import request_trace
from tests.kv_transfer.faulty_transport import Fault, FaultPlan, FaultyTransport
from tests.workers.decoding import decode
from tests.workers.fetching import named as fetching_name
from tests.workers.fetching import request as fetching_request
from tests.workers.fetching import warm
from tests.workers.kept_spans import KeptSpans, router_traces
from tests.workers.local_cluster import LocalCluster, stuck

PROMPT = [5, 6, 7, 8] * 20
TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALLERS = ("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-01")
SECRET = "zebrafish"


@asynccontextmanager
async def traced(
    checkpoint: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    share: float = 1.0,
    **settings: Any,
) -> AsyncIterator[tuple[LocalCluster, KeptSpans]]:
    sink = KeptSpans()
    tracing = router_traces(monkeypatch, sink, share)
    async with LocalCluster(checkpoint, folder, tracing=tracing, **settings) as cluster:
        yield cluster, sink


def asked(**fields: Any) -> pb.GenerateRequest:
    stop = {"max_tokens": 6, "ignore_eos": True}
    return pb.GenerateRequest(token_ids={"ids": PROMPT}, stop=stop, **fields)


def gaps_ns(parts: list[TraceSpan]) -> list[int]:
    return [after.start_ns - before.end_ns for before, after in itertools.pairwise(parts)]


async def test_a_prompt_that_is_computed_here_leaves_phases_without_a_gap(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with traced(checkpoint, tmp_path, monkeypatch, prefill=()) as (cluster, sink):
        await cluster.generate(asked(request_id="r-1"))
        await cluster.until(lambda: "router" in sink.names)
    sink.check()
    router, worker = sink.named("router"), sink.named("decode_worker")
    parts = sink.parts(router)
    assert [part.name for part in parts] == ["admission", "placement", "decode_worker"]
    phases = sink.parts(worker)
    assert [phase.name for phase in phases] == ["queue", "prefill", "decode"]
    assert gaps_ns(phases) == [0, 0]
    assert (phases[0].start_ns, phases[-1].end_ns) == (worker.start_ns, worker.end_ns)
    assert not any(span.error for span in sink.spans)
    told = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.model": "echo",
        "gen_ai.usage.input_tokens": len(PROMPT),
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.output_tokens": 6,
        "gen_ai.response.finish_reasons": ("length",),
        "penstock.request_id": "r-1",
        "penstock.decode": "decode-0",
    }
    assert router.attributes.items() >= told.items()


@pytest.mark.parametrize("by_frames", [True, False])
async def test_a_prompt_that_is_computed_elsewhere_is_told_by_who_computes_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_frames: bool
) -> None:
    async with traced(checkpoint, tmp_path, monkeypatch, disaggregate="always") as (cluster, sink):
        link = cluster.router.links.get(cluster.decode[0].worker.member.worker.worker_id)
        await cluster.until(lambda: link._frames is not None and link._frames.is_open)
        monkeypatch.setattr(link._frames, "is_open", by_frames)
        await cluster.generate(asked(), metadata=(CALLERS, ("tracestate", "rojo=1,congo=2")))
        await cluster.until(lambda: {"router", "prefill_worker"} <= set(sink.names))
        assert link._frames is not None
        monkeypatch.undo()
    sink.check()
    assert {span.state for span in sink.spans} == {"rojo=1,congo=2"}
    router, worker = sink.named("router"), sink.named("decode_worker")
    assert (f"{router.trace_id:032x}", f"{router.parent_id:016x}") == (TRACE_ID, SPAN_ID)
    prefill = sink.named("prefill_worker")
    assert worker.parent_id == router.span_id
    assert prefill.parent_id == worker.span_id
    assert {part.name for part in sink.parts(worker)} == {"prefill_worker", "kv_transfer", "decode"}
    phases = sink.parts(prefill)
    assert [phase.name for phase in phases] == ["queue", "prefill"]
    assert gaps_ns(phases) == [0]
    assert sink.named("decode").end_ns == worker.end_ns
    assert sink.named("kv_transfer").attributes["penstock.transferred_bytes"] > 0
    assert not any(span.error for span in sink.spans)


async def test_tracing_does_as_much_for_a_long_answer_as_for_a_short_one(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is done for a token."""
    nums_calls = []
    async with traced(checkpoint, tmp_path, monkeypatch, prefill=()) as (cluster, sink):
        for number, num_tokens in enumerate((2, 64), 1):
            request = asked()
            request.stop.max_tokens = num_tokens
            with calls_of_tracing() as calls:
                await cluster.generate(request)
                await cluster.until(lambda n=number: sink.names.count("router") == n)
            nums_calls.append(Counter(calls))
    [short, long] = nums_calls
    assert short == long
    assert short["begin"] == 2  # at the router and at the worker


@contextmanager
def calls_of_tracing() -> Iterator[list[str]]:
    """Names of the functions of tracing that this thread calls."""
    files = {module.__file__ for module in (cluster_tracing, request_trace, decode_trace)}
    calls: list[str] = []

    def called(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename in files:
            calls.append(frame.f_code.co_name)

    sys.setprofile(called)
    try:
        yield calls
    finally:
        sys.setprofile(None)


async def test_a_caller_decides_and_what_is_no_traceparent_decides_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = ("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-00")
    wrong = ("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-01-{SECRET}")
    async with traced(checkpoint, tmp_path, monkeypatch, prefill=(), share=0.0) as (cluster, sink):
        for metadata in ((), (off,), (wrong,)):
            answer = await cluster.generate(asked(), metadata=metadata)
            assert "traceresponse" not in answer.initial
        assert sink.spans == []
        answer = await cluster.generate(asked(), metadata=(CALLERS,))
        await cluster.until(lambda: "router" in sink.names)
    told = f"00-{TRACE_ID}-{sink.named('router').span_id:016x}-01"
    assert answer.initial["traceresponse"] == told


async def test_who_leaves_leaves_a_trace_of_how_far_it_came(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with traced(checkpoint, tmp_path, monkeypatch, prefill=()) as (cluster, sink):
        cluster.decode[0].gate.close()
        call = cluster.inference.Generate(asked())
        await stuck(cluster.decode[0])
        call.cancel()
        await cluster.until(lambda: {"router", "decode_worker"} <= set(sink.names))
        cluster.decode[0].gate.open()
    sink.check()
    errors = {span.name: span.error for span in sink.spans}
    assert errors.pop("admission") is None
    assert errors.pop("placement") is None
    assert errors.pop("queue") is None
    assert errors == dict.fromkeys(("router", "decode_worker", "prefill"), "CANCELLED")


async def test_what_is_refused_says_why_and_not_what_it_said(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with traced(checkpoint, tmp_path, monkeypatch, decode=(), prefill=()) as (cluster, sink):
        for wrong in (pb.GenerateRequest(text=SECRET, model=SECRET), asked()):
            with pytest.raises(grpc.aio.AioRpcError):
                await cluster.generate(wrong)
        await cluster.until(lambda: sink.names.count("router") == 2)
    [first, second] = [span for span in sink.spans if span.name == "router"]
    assert (first.error, second.error) == ("UNKNOWN_MODEL", "NO_WORKER")
    assert SECRET not in str(sink.spans)


async def test_a_request_that_moves_has_every_try_and_what_failed_in_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = {"decode": ({}, {}), "prefill": ()}
    async with traced(checkpoint, tmp_path, monkeypatch, **two) as (cluster, sink):
        for worker in cluster.decode:
            worker.gate.close()
        generating = asyncio.create_task(cluster.generate(asked()))
        await cluster.until(lambda: any(each.gate.reached.is_set() for each in cluster.decode))
        [held] = [each for each in cluster.decode if each.gate.reached.is_set()]
        [other] = [each for each in cluster.decode if each is not held]
        other.gate.open()
        await cluster.router.links.lose(cluster.router.links.drop(held.name))  # type: ignore[arg-type]
        answer = await generating
        held.gate.open()
        await cluster.until(lambda: sink.names.count("decode_worker") == 2)
        assert answer.is_complete
    router = sink.named("router")
    tries = [part for part in sink.parts(router) if part.name == "placement"]
    assert [each.attributes["penstock.try"] for each in tries] == [1, 2]
    assert [each.attributes["penstock.decode_worker"] for each in tries] == [held.name, other.name]
    served = [part for part in sink.parts(router) if part.name == "decode_worker"]
    assert [each.error for each in served] == ["CANCELLED", None]
    assert router.error is None


async def test_a_hand_over_that_fails_is_seen_in_its_transfer(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"disaggregate": "always", "wrap_transport": FaultyTransport}
    async with traced(checkpoint, tmp_path, monkeypatch, **settings) as (cluster, sink):
        cluster.disturb("prefill-0", "decode-0", FaultPlan(shares={Fault.CORRUPT: 1.0}))
        await cluster.generate(asked())
        await cluster.until(lambda: {"router", "prefill_worker"} <= set(sink.names))
    sink.check()
    worker = sink.named("decode_worker")
    assert worker.attributes["penstock.recomputes"] == 1
    assert sink.named("kv_transfer").error == "RECOMPUTED"
    assert {part.name for part in sink.parts(worker)} == {"prefill_worker", "kv_transfer", "decode"}


async def test_an_answer_of_one_token_needs_no_kv_and_that_is_no_error(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with traced(checkpoint, tmp_path, monkeypatch, disaggregate="always") as (cluster, sink):
        request = asked()
        request.stop.max_tokens = 1
        await cluster.generate(request)
        await cluster.until(lambda: {"router", "prefill_worker"} <= set(sink.names))
    sink.check()
    assert [span for span in sink.spans if span.error] == []


async def test_a_prompt_that_nobody_else_computes_is_told_as_computed_here(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"disaggregate": "always"}
    async with traced(checkpoint, tmp_path, monkeypatch, **settings) as (cluster, sink):
        cluster.prefill[0].worker._transfers.source.lend_prompt = None
        await cluster.generate(asked())
        await cluster.until(lambda: "router" in sink.names)
    sink.check()
    worker = sink.named("decode_worker")
    assert worker.attributes["penstock.recomputes"] == 1
    phases = sink.parts(worker)
    assert [phase.name for phase in phases] == ["queue", "prefill", "decode"]
    assert gaps_ns(phases) == [0, 0]


@pytest.mark.parametrize("is_elsewhere", [False, True])
async def test_a_prefix_that_is_fetched_is_a_phase_of_its_own(
    checkpoint: Path, tmp_path: Path, is_elsewhere: bool
) -> None:
    sink = KeptSpans()
    tracing = Tracing(sink)
    workers: dict[str, Any] = {"decode": [{}, {}], "prefill": [{}]}
    async with LocalCluster(checkpoint, tmp_path, tracing=tracing, **workers) as cluster:
        source, receiver = cluster.decode
        await warm(source)
        request = fetching_request(source=source)
        request.traceparent = CALLERS[1]
        if is_elsewhere:
            request.prefill.CopyFrom(fetching_name(cluster.prefill[0]))
        await decode(receiver, request)
        await cluster.until(lambda: ("prefill_worker" in sink.names) >= is_elsewhere)
    phases = sink.parts(sink.named("prefill_worker" if is_elsewhere else "decode_worker"))
    told = ["kv_fetch", "queue", "prefill", *([] if is_elsewhere else ["decode"])]
    assert [phase.name for phase in phases] == told
    assert set(gaps_ns(phases)) == {0}
