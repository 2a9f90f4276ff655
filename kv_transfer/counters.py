"""What was counted of transfers, by one end. A transfer costs its counters microseconds."""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate
from typing import Self

from cluster.types import HistogramReport
from kv_transfer.transfer import State

BOUNDS_S = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


class Reason(StrEnum):
    """Why a hand-over failed."""

    CANCELLED = "cancelled"
    LAPSED = "lapsed"
    WRITER_DIED = "writer_died"
    RECEIVER_DIED = "receiver_died"
    WRITER_CLOSED = "writer_closed"
    WRITE_FAILED = "write_failed"
    PROTOCOL = "protocol"
    SHORT = "short"
    DIGEST = "digest"


@dataclass(slots=True, eq=False)
class Histogram:
    """Seconds by fixed bounds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum += seconds

    def merge(self, other: Self) -> None:
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum

    def report(self) -> HistogramReport:
        return HistogramReport(bounds=BOUNDS_S, counts=tuple(accumulate(self.counts)), sum=self.sum)


@dataclass(slots=True, eq=False)
class TransferCounters:
    num_transfers: int = 0  # that landed whole; at the receiver: that were verified
    num_bytes: int = 0
    num_spans: int = 0
    write_seconds: Histogram = field(default_factory=Histogram)
    verify_s: float = 0.0
    num_fenced: int = 0  # messages of epochs that were over, ignored
    num_refused_writes: int = 0  # stopped before their first byte
    failures: Counter[tuple[State, Reason]] = field(default_factory=Counter)

    def transferred(
        self, *, num_bytes: int, write_s: float, num_spans: int = 0, verify_s: float = 0.0
    ) -> None:
        self.num_transfers += 1
        self.num_bytes += num_bytes
        self.num_spans += num_spans
        self.write_seconds.add(write_s)
        self.verify_s += verify_s

    def merge(self, other: Self) -> None:
        self.num_transfers += other.num_transfers
        self.num_bytes += other.num_bytes
        self.num_spans += other.num_spans
        self.write_seconds.merge(other.write_seconds)
        self.verify_s += other.verify_s
        self.num_fenced += other.num_fenced
        self.num_refused_writes += other.num_refused_writes
        self.failures.update(other.failures)

    def as_dict(self) -> dict[str, float]:
        failures = {
            f"transfer_failures.{phase}.{reason}": float(count)
            for (phase, reason), count in self.failures.items()
        }
        return {
            "transfers_verified": float(self.num_transfers),
            "transfer_bytes": float(self.num_bytes),
            "transfer_write_s": self.write_seconds.sum,
            "transfer_verify_s": self.verify_s,
            "transfer_fenced": float(self.num_fenced),
            **failures,
        }
