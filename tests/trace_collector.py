"""A collector of traces on loopback: takes in OTLP over gRPC, as OpenTelemetry's, and keeps it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
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
    _came: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, data: bytes) -> bytes:
        self.raw += data
        request = service_pb.ExportTraceServiceRequest.FromString(data)
        for each in request.resource_spans:
            resource = _plain(each.resource.attributes)
            for scope in each.scope_spans:
                self.spans += [_collected(span, resource) for span in scope.spans]
        self._came.set()
        return b""

    def trace(self, trace_id: str) -> list[Collected]:
        return [span for span in self.spans if span.trace_id == trace_id]

    async def names(self, *names: str, within_s: float = 15.0) -> list[Collected]:
        """The spans of one trace, once it has those of these names and its root has come."""
        async with asyncio.timeout(within_s):
            while True:
                for trace_id in {span.trace_id for span in self.spans}:
                    spans = self.trace(trace_id)
                    if {*names, "router"} <= {span.name for span in spans}:
                        return sorted(spans, key=lambda span: span.start_ns)
                self._came.clear()
                await self._came.wait()


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    collector, server = Collector(), grpc.aio.server()

    async def export(data: bytes, context: Any) -> bytes:
        return collector.take(data)

    handler = grpc.unary_unary_rpc_method_handler(export)  # bytes in, bytes out
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(_EXPORT, {"Export": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    collector.endpoint = f"http://127.0.0.1:{port}"
    await server.start()
    try:
        yield collector
    finally:
        await server.stop(None)


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
