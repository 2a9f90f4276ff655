"""Counts values in buckets with fixed bounds, of which the counts of several processes add up."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Self

from cluster.types import HistogramReport


class Histogram:
    """Costs a quarter of a microsecond a value."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds` rise; above the last there is one bucket more."""
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def merge(self, other: Self) -> None:
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum

    def report(self) -> HistogramReport:
        return HistogramReport(
            bounds=self.bounds, counts=tuple(accumulate(self.counts)), sum=self.sum
        )
