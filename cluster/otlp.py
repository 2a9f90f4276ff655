"""The one door to OpenTelemetry: hands finished spans to a collector, by OTLP over gRPC.

They wait in a bounded queue and leave in batches, on a thread of the library's. A collector that
does not answer costs what it would have taken in: a counter says how many, and one line that it is
so.
"""

import logging
from collections.abc import Sequence
from typing import Final

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags, TraceState
from opentelemetry.trace import SpanKind as OtelKind

from cluster.release import version
from cluster.tracing import SpanCounts, SpanKind, TraceSpan

logger = logging.getLogger(__name__)

MAX_QUEUED: Final = 4096  # spans that wait; more are lost
_BATCH: Final = 512
_EVERY_S: Final = 1.0
_TIMEOUT_S: Final = 3.0  # of one batch, tried again within it
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_KINDS: Final = {SpanKind.SERVER: OtelKind.SERVER, SpanKind.INTERNAL: OtelKind.INTERNAL}
_WELL: Final = Status(StatusCode.UNSET)


class OtlpSink:
    """Takes spans of one process."""

    def __init__(self, endpoint: str, *, service: str, instance: str) -> None:
        # What it says of each try, we say once.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self.counts = SpanCounts()
        self._num_taken = 0
        self._resource = Resource.create(
            {
                "service.name": service,
                "service.instance.id": instance,
                "service.version": version(),
            }
        )
        self._scope = InstrumentationScope("penstock", version())
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_TIMEOUT_S)
        self._exporter = _Counting(exporter, endpoint, self.counts)
        self._batches = BatchSpanProcessor(
            self._exporter,
            max_queue_size=MAX_QUEUED + _BATCH,  # it would drop old ones, and not say how many
            schedule_delay_millis=1000 * _EVERY_S,
            max_export_batch_size=_BATCH,
        )

    def take(self, span: TraceSpan) -> None:
        if self._num_taken - self._exporter.num_done >= MAX_QUEUED:
            self.counts.num_crowded += 1
            return
        self._num_taken += 1
        self._batches.on_end(self._readable(span))

    def close(self) -> None:
        self._exporter.is_closing = True
        self._batches.shutdown()  # type: ignore[no-untyped-call]

    def _readable(self, span: TraceSpan) -> ReadableSpan:
        """Makes it as the library's own tracer leaves one, which is made for spans that have yet to
        end and takes twenty times as long."""
        state = TraceState.from_header([span.state]) if span.state else None
        parent = None
        if span.parent_id is not None:
            parent = SpanContext(span.trace_id, span.parent_id, True, _SAMPLED, state)
        status = _WELL
        attributes = span.attributes
        if span.error is not None:
            status = Status(StatusCode.ERROR)
            attributes = {**attributes, "error.type": span.error}
        return ReadableSpan(
            span.name,
            context=SpanContext(span.trace_id, span.span_id, False, _SAMPLED, state),
            parent=parent,
            resource=self._resource,
            attributes=attributes,
            kind=_KINDS[span.kind],
            status=status,
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=self._scope,
        )


class _Counting(SpanExporter):
    """Counts what becomes of spans, and says it when that changes. On the library's thread."""

    def __init__(self, exporter: SpanExporter, endpoint: str, counts: SpanCounts) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._counts = counts
        self._is_away = False
        self.is_closing = False
        self.num_done = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self.is_closing and self._is_away:  # nobody waits for it again
            result = SpanExportResult.FAILURE
        else:
            result = self._exporter.export(spans)
        self.num_done += len(spans)
        is_away = result is not SpanExportResult.SUCCESS
        if is_away:
            self._counts.num_refused += len(spans)
        else:
            self._counts.num_exported += len(spans)
        if is_away and not self._is_away:
            logger.warning("spans are lost: nobody takes them in at %s", self._endpoint)
        elif self._is_away and not is_away:
            logger.info("spans are taken in again at %s", self._endpoint)
        self._is_away = is_away
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()
