"""Measures how far predictions were off lately: actual / predicted seconds, and quantiles of it."""

import math
from collections import deque

from cluster.types import ErrorQuantiles

_NUM_KEPT = 256  # of these the 99th percentile is the third greatest


class Residuals:
    """The last few hundred. What is older is forgotten: the machine may be another by now."""

    def __init__(self, num_kept: int = _NUM_KEPT) -> None:
        self._ratios: deque[float] = deque(maxlen=num_kept)
        self._quantiles: ErrorQuantiles | None = ErrorQuantiles()

    def add(self, actual_s: float, predicted_s: float) -> None:
        """Adds one prediction; what is no duration is left out."""
        if predicted_s > 0.0 and 0.0 < (ratio := actual_s / predicted_s) < math.inf:
            self._ratios.append(ratio)
            self._quantiles = None

    def quantiles(self) -> ErrorQuantiles:
        """All 1 while nothing is known."""
        if self._quantiles is None:
            ordered = sorted(self._ratios)
            p50, p90, p99 = (ordered[math.ceil(q * len(ordered)) - 1] for q in (0.5, 0.9, 0.99))
            self._quantiles = ErrorQuantiles(p50=p50, p90=p90, p99=p99)
        return self._quantiles
