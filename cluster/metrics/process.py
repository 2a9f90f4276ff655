"""What every process that serves tells of itself, whatever its role."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from cluster.histogram import Histogram
from cluster.lateness import AttentiveClock
from cluster.metrics.metric import Kind, Label, Metric, Series, by_label, value
from cluster.release import version
from cluster.tracing import SpanCounts

LAG_BOUNDS_S: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
ROLES: Final = ("prefill", "decode")
_VERSION: Final = Label("version", at_most=1, meaning="of Penstock")
_MODEL: Final = Label("model", at_most=1, meaning="as clients call it")
_FATE: Final = Label("fate", ("exported", "lost"))
_PART: Final = Label("part", ("router", *ROLES))


@dataclass(slots=True, eq=False, kw_only=True)
class ServingProcess:
    """Holds what a process knows of itself."""

    part: str
    model: str
    attention: AttentiveClock
    lag: Histogram = field(default_factory=lambda: Histogram(LAG_BOUNDS_S))
    spans: SpanCounts = field(default_factory=SpanCounts)  # of requests that are traced
    num_dropped: int = 0  # in the scrape that is being written

    @property
    def series(self) -> Iterator[Series]:
        yield Series((version(), self.model, self.part), 1.0)


PROCESS: Final[tuple[Metric[ServingProcess], ...]] = (
    Metric(
        name="penstock_build_info",
        kind=Kind.GAUGE,
        help="Is 1: its labels say which release this is, what it serves, and as what.",
        labels=(_VERSION, _MODEL, _PART),
        read=lambda facts: facts.series,
    ),
    Metric(
        name="penstock_event_loop_lag_seconds",
        kind=Kind.HISTOGRAM,
        help="How late the event loop was, looked at four times a second.",
        read=value(lambda facts: facts.lag.report()),
    ),
    Metric(
        name="penstock_absent_seconds",
        kind=Kind.COUNTER,
        help="For how long this process was stopped, starved or held for more than half a second.",
        read=value(lambda facts: facts.attention.absent_s),
    ),
    Metric(
        name="penstock_trace_spans",
        kind=Kind.COUNTER,
        help="Spans of traced requests: taken in by their collector, or lost as it did not.",
        labels=(_FATE,),
        read=by_label(
            lambda facts: {"exported": facts.spans.num_exported, "lost": facts.spans.num_lost}
        ),
    ),
    Metric(
        name="penstock_dropped_series",
        kind=Kind.GAUGE,
        help="Series that this scrape leaves out, as their labels are beyond what is declared.",
        read=value(lambda facts: facts.num_dropped),
    ),
)
