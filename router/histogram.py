"""Quantiles of durations in bounded memory: counts in buckets whose bounds rise by 2 %."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

_LEAST_S = 1e-4
_GROWTH = 1.02
_LOG_GROWTH = math.log(_GROWTH)
_NUM_BUCKETS = 1 + math.ceil(math.log(1e4 / _LEAST_S) / _LOG_GROWTH)  # up to three hours


@dataclass(slots=True, eq=False)
class DurationHistogram:
    """Quantiles are 2 % too high at most. Above the last bucket all is its bound."""

    count: int = 0
    _counts: dict[int, int] = field(default_factory=dict)  # by bucket; most are empty

    def add(self, seconds: float) -> None:
        bucket = 0
        if seconds > _LEAST_S:
            bucket = min(_NUM_BUCKETS, math.ceil(math.log(seconds / _LEAST_S) / _LOG_GROWTH))
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        self.count += 1

    def with_more(self, durations_s: Iterable[float]) -> "DurationHistogram":
        """A copy that has these, too."""
        copy = DurationHistogram(self.count, dict(self._counts))
        for seconds in durations_s:
            copy.add(seconds)
        return copy

    def at_rank(self, rank: float) -> float:
        """The duration that so many are not above; 0.0 where nothing is known."""
        below = 0
        for bucket in sorted(self._counts):
            below += self._counts[bucket]
            if below >= rank:
                return self._bound(bucket)
        return self._bound(max(self._counts)) if self._counts else 0.0

    def quantile(self, share: float) -> float:
        return self.at_rank(share * self.count)

    @staticmethod
    def _bound(bucket: int) -> float:
        return _LEAST_S * _GROWTH**bucket
