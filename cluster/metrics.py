"""What workers report of their pairs as rows of a metrics page: names and units as Prometheus
has them. Renders; serves nothing."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from cluster.types import HistogramReport, PairReport, WorkerId

PREFIX = "penstock_kv_transfer_"


class MetricRow(NamedTuple):
    name: str
    labels: Mapping[str, str]
    value: float


def pair_rows(worker: WorkerId, pair: PairReport) -> Iterator[MetricRow]:
    """One pair as one of its ends reports it. Counters end in `_total`."""
    labels = {
        "worker": worker,
        "peer": pair.peer,
        "direction": str(pair.direction),
        "transport": pair.transport,
    }
    values = {
        "transfers_total": pair.num_transfers,
        "bytes_total": pair.num_bytes,
        "spans_total": pair.num_spans,
        "verify_seconds_total": pair.verify_s,
        "fenced_messages_total": pair.num_fenced,
        "refused_writes_total": pair.num_refused_writes,
        "quarantined_blocks": pair.num_quarantined_blocks,
    }
    for name, value in values.items():
        yield MetricRow(PREFIX + name, labels, float(value))
    for failures in pair.failures:
        where = {**labels, "phase": failures.phase, "reason": failures.reason}
        yield MetricRow(PREFIX + "failures_total", where, float(failures.count))
    yield from _histogram_rows(PREFIX + "write_seconds", labels, pair.write_seconds)


def _histogram_rows(
    name: str, labels: Mapping[str, str], histogram: HistogramReport
) -> Iterator[MetricRow]:
    limits = [*map(repr, histogram.bounds), "+Inf"]
    for limit, count in zip(limits, histogram.counts, strict=True):
        yield MetricRow(f"{name}_bucket", {**labels, "le": limit}, float(count))
    yield MetricRow(f"{name}_sum", labels, histogram.sum)
    yield MetricRow(f"{name}_count", labels, float(histogram.counts[-1]))
