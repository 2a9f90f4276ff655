"""A collector of traces on loopback: takes in OTLP over gRPC, as OpenTelemetry's, and keeps it."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service_pb
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1 import trace_pb2 as pb

_EXPORT = "opentelemetry.proto.collector.trace.v1.TraceService"


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """One span, as plain values."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str  # empty: it has none
    start_ns: int
    end_ns: int
    kind: str
    is_error: bool
    state: str
    attributes: dict[str, Any]
    service: str
    instance: str


@dataclass(slots=True, eq=False)
class Collector:
    spans: list[Collected] = field(default_factory=list)
    raw: bytearray = field(default_factory=bytearray)  # all that came
    endpoint: str = ""
    _came: threading.Condition = field(default_factory=threading.Condition)

    def take(self, data: bytes) -> bytes:
        request = service_pb.ExportTraceServiceRequest.FromString(data)
        with self._came:
            self.raw += data
            for each in request.resource_spans:
                resource = _plain(each.resource.attributes)
                for scope in each.scope_spans:
                    self.spans += [_collected(span, resource) for span in scope.spans]
            self._came.notify_all()
        return b""

    def trace(self, trace_id: str) -> list[Collected]:
        return [span for span in self.spans if span.trace_id == trace_id]

    def whole(self, trace_id: str, *names: str, within_s: float = 20.0) -> list[Collected]:
        """A trace's spans in their order, once those of these names have come."""
        with self._came:
            has_come = self._came.wait_for(
                lambda: set(names) <= {span.name for span in self.trace(trace_id)}, within_s
            )
            assert has_come, f"of {trace_id} there is only {self.trace(trace_id)}"
            return sorted(self.trace(trace_id), key=lambda span: span.start_ns)


@contextmanager
def collecting() -> Iterator[Collector]:
    """On a thread of its own."""
    collector, server = Collector(), grpc.server(ThreadPoolExecutor(1))
    handler = grpc.unary_unary_rpc_method_handler(lambda data, _: collector.take(data))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(_EXPORT, {"Export": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    collector.endpoint = f"http://127.0.0.1:{port}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()


def children(spans: list[Collected], of: Collected) -> list[Collected]:
    return [span for span in spans if span.parent_id == of.span_id]


def named(spans: list[Collected], name: str) -> Collected:
    [found] = [span for span in spans if span.name == name]
    return found


def uncovered_s(spans: list[Collected], of: Collected) -> float:
    """The longest time of a span in which none of its parts was in progress."""
    reached, longest = of.start_ns, 0
    for part in sorted(children(spans, of), key=lambda span: span.start_ns):
        longest = max(longest, part.start_ns - reached)
        reached = max(reached, part.end_ns)
    return max(longest, of.end_ns - reached) / 1e9


def _collected(span: pb.Span, resource: dict[str, Any]) -> Collected:
    return Collected(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        kind=pb.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        is_error=span.status.code == pb.Status.STATUS_CODE_ERROR,
        state=span.trace_state,
        attributes=_plain(span.attributes),
        service=resource["service.name"],
        instance=resource["service.instance.id"],
    )


def _plain(attributes: Any) -> dict[str, Any]:
    return {each.key: _value(each.value) for each in attributes}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind or "string_value")


def lines(spans: list[Collected]) -> Iterator[str]:
    """A trace as a person reads it."""
    by_id = {span.span_id: span for span in spans}
    first_ns = min(span.start_ns for span in spans)
    for span in sorted(spans, key=lambda each: (each.start_ns, -each.end_ns)):
        depth, above = 0, by_id.get(span.parent_id)
        while above is not None:
            depth, above = depth + 1, by_id.get(above.parent_id)
        at, took = (span.start_ns - first_ns) / 1e6, (span.end_ns - span.start_ns) / 1e6
        yield f"{'  ' * depth}{span.name:<16} {at:9.3f} ms {took:9.3f} ms {span.instance}"
