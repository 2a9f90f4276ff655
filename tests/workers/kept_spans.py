"""Spans as processes tell them, kept instead of exported: no collector is needed to look."""

from dataclasses import dataclass, field

import pytest

from cluster.tracing import SpanCounts, TraceSpan, Tracing


@dataclass(slots=True, eq=False)
class KeptSpans:
    """A `SpanSink`."""

    spans: list[TraceSpan] = field(default_factory=list)
    counts: SpanCounts = field(default_factory=SpanCounts)

    def take(self, span: TraceSpan) -> None:
        self.spans.append(span)

    def close(self) -> None:
        """There is nobody to hand them to."""

    @property
    def names(self) -> list[str]:
        return sorted(span.name for span in self.spans)

    def named(self, name: str) -> TraceSpan:
        [found] = [span for span in self.spans if span.name == name]
        return found

    def parts(self, of: TraceSpan) -> list[TraceSpan]:
        """In the order of their beginnings."""
        return sorted(
            (span for span in self.spans if span.parent_id == of.span_id),
            key=lambda span: (span.start_ns, span.end_ns),
        )

    def check(self) -> None:
        """Every span is a part of another within whose time it is, but for the first one."""
        by_id = {span.span_id: span for span in self.spans}
        assert len(by_id) == len(self.spans)
        assert len({span.trace_id for span in self.spans}) == 1
        [root] = [span for span in self.spans if span.parent_id not in by_id]
        assert root.name == "router"
        for span in self.spans:
            assert span.start_ns <= span.end_ns, span
            above = by_id.get(span.parent_id or 0, span)
            assert above.start_ns <= span.start_ns, span
            # Who asked may hear of the end, and leave, before who was asked is through.
            assert span.end_ns <= max(above.end_ns, root.end_ns) + 50_000_000, span


def router_traces(monkeypatch: pytest.MonkeyPatch, sink: KeptSpans, share: float = 1.0) -> Tracing:
    """Has routers that are made from now on keep their spans; gives what workers are to have."""
    monkeypatch.setattr("router.router.open_tracing", lambda *_, **__: Tracing(sink, share))
    return Tracing(sink)
