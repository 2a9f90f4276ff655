"""Which requests are traced, what a caller may say of it, and how spans reach a collector."""

import logging
import sys
from collections.abc import Callable
from typing import Any

import pytest

from cluster.errors import ConfigError, StartupError
from cluster.otlp import OtlpSink
from cluster.tracing import (
    SpanKind,
    TracedRequest,
    TraceSettings,
    TraceSpan,
    Tracing,
    open_tracing,
    parent_of,
)
from tests.trace_collector import collecting
from tests.workers.kept_spans import KeptSpans

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE_ID}-{SPAN_ID}-01"
NOWHERE = "http://127.0.0.1:9"  # nobody listens there


@pytest.mark.parametrize(
    ("traceparent", "is_sampled"),
    [
        (GOOD, True),
        (f"00-{TRACE_ID}-{SPAN_ID}-00", False),
        (f"00-{TRACE_ID}-{SPAN_ID}-03", True),  # level 2: its trace id is random
        (f"cc-{TRACE_ID}-{SPAN_ID}-01-what-comes-later", True),
    ],
)
def test_a_callers_trace_is_read(traceparent: str, is_sampled: bool) -> None:
    parent = parent_of(traceparent, "rojo=1")
    assert parent is not None
    assert (f"{parent.trace_id:032x}", f"{parent.span_id:016x}") == (TRACE_ID, SPAN_ID)
    assert (parent.is_sampled, parent.state) == (is_sampled, "rojo=1")


@pytest.mark.parametrize(
    "traceparent",
    [
        None,
        "",
        "00",
        "-" * 55,
        GOOD + "\n",
        GOOD + "-more",
        GOOD + " ",
        " " + GOOD,
        GOOD.upper(),
        GOOD * 1000,
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID[:-1]}g-{SPAN_ID}-01",
        f"cc-{TRACE_ID}-{SPAN_ID}-01-{'x' * 10_000}",
        GOOD.replace("4", "٤"),  # a digit elsewhere
    ],
)
def test_what_is_none_is_ignored(traceparent: str | None) -> None:
    assert parent_of(traceparent, "rojo=1") is None
    assert Tracing(KeptSpans(), 0.0).begin("router", traceparent, None) is None
    assert Tracing(KeptSpans(), 1.0).begin("router", traceparent, None) is not None


@pytest.mark.parametrize("state", ["a=" + "x" * 600, "a=\r\nx: y", "é=1", None])
def test_a_state_that_is_none_is_left_out(state: str | None) -> None:
    parent = parent_of(GOOD, state)
    assert parent is not None
    assert parent.state == ""


def test_a_share_of_what_nobody_has_decided_is_traced() -> None:
    some = Tracing(KeptSpans(), 0.25)
    num = sum(some.begin("router", None, None) is not None for _ in range(4000))
    assert 850 < num < 1150
    off = f"00-{TRACE_ID}-{SPAN_ID}-00"
    assert Tracing(KeptSpans(), 1.0).begin("router", off, None) is None
    assert Tracing(KeptSpans(), 0.0).begin("router", GOOD, None) is not None


def test_what_it_tells_others_is_what_they_read() -> None:
    trace = Tracing(KeptSpans(), 1.0).begin("router", None, None)
    assert trace is not None
    parent = parent_of(trace.traceparent, trace.state)
    assert parent == (trace.trace_id, trace.span_id, True, "")


@pytest.mark.parametrize(
    "endpoint",
    [
        "localhost:4317",
        "http://localhost",
        "grpc://localhost:4317",
        "http://localhost:4317/v1/traces",
        "http://ann:hidden@localhost:4317",
        "http://[::1:4317",
        "http://localhost:port",
    ],
)
def test_an_endpoint_is_told_as_it_is_to_be(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="give http://HOST:PORT") as refused:
        TraceSettings(endpoint=endpoint)
    assert "hidden" not in refused.value.message


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_one(share: float) -> None:
    with pytest.raises(ConfigError, match="'share' is"):
        TraceSettings(share=share)


def test_nobody_collects_where_no_endpoint_is_told() -> None:
    assert open_tracing(TraceSettings(), service="s", instance="i") is None


def test_without_its_package_a_process_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cluster.otlp", None)
    with pytest.raises(StartupError, match=r"install penstock\[tracing\]"):
        open_tracing(TraceSettings(endpoint=NOWHERE), service="s", instance="i")


def test_a_collector_reads_what_was_told() -> None:
    with collecting() as collector:
        sink = OtlpSink(collector.endpoint, service="penstock-router", instance="r-0")
        trace = Tracing(sink, clock=lambda: 5.0).begin("router", GOOD, "rojo=1")
        assert trace is not None
        trace.part("placement", 1.0, 2.0, {"penstock.try": 1, "penstock.source": None})
        trace.end(1.0, 3.5, {"gen_ai.response.finish_reasons": ("stop", "length")}, "NO_WORKER")
        sink.close()
    part, router = collector.spans
    assert (sink.counts.num_exported, sink.counts.num_lost) == (2, 0)
    assert {each.trace_id for each in collector.spans} == {TRACE_ID}
    assert (router.parent_id, part.parent_id) == (SPAN_ID, router.span_id)
    assert (router.kind, part.kind) == ("server", "internal")
    assert (router.is_error, part.is_error) == (True, False)
    assert (router.state, part.state) == ("rojo=1", "rojo=1")
    assert router.attributes == {
        "gen_ai.response.finish_reasons": ["stop", "length"],
        "error.type": "NO_WORKER",
    }
    assert part.attributes == {"penstock.try": 1}
    assert (router.service, router.instance) == ("penstock-router", "r-0")
    assert part.end_ns - part.start_ns == pytest.approx(1e9, abs=1e3)
    assert router.end_ns - part.end_ns == pytest.approx(1.5e9, abs=1e3)


def test_a_collector_that_is_away_costs_a_counter_and_a_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.otlp._TIMEOUT_S", 0.2)
    monkeypatch.setattr("cluster.otlp.MAX_QUEUED", 700)
    caplog.set_level(logging.DEBUG)
    sink = OtlpSink(NOWHERE, service="s", instance="i")
    trace = TracedRequest(Tracing(sink), "router", 1, None, "")
    for _ in range(1000):
        trace.end(0.0, 1.0, {})
    sink.close()
    assert sink.counts.num_exported == 0
    assert sink.counts.num_lost == 1000
    told = [record.getMessage() for record in caplog.records if record.name != "asyncio"]
    assert told == [f"spans are lost: nobody takes them in at {NOWHERE}"]


def test_taking_a_span_waits_for_nobody_and_fails_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.otlp.MAX_QUEUED", 3)
    sink = OtlpSink(NOWHERE, service="s", instance="i")
    exported: list[int] = []
    monkeypatch.setattr(sink._exporter._exporter, "export", _counting(exported))
    for _ in range(5):
        sink.take(_span())
    assert sink.counts.num_lost == 2
    sink.close()
    assert sum(exported) == 3


def _counting(exported: list[int]) -> Callable[[Any], Any]:
    from opentelemetry.sdk.trace.export import SpanExportResult

    def export(spans: Any) -> Any:
        exported.append(len(spans))
        return SpanExportResult.SUCCESS

    return export


def _span() -> TraceSpan:
    return TraceSpan("a", SpanKind.INTERNAL, 1, 2, 3, "", 4, 5, {}, None)
