"""Measures how wrong the router's own predictions were lately, and how often targets were met.

Ratios of short times and of long ones say different things (a message more is ten times a prompt
of a millisecond, and nothing to a queue of seconds), so that they are kept by decades of what
was predicted. Errors that nobody has confirmed for a while say nothing any more: whoever is
rejected for them could not disprove them.
"""

import math
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Final, NamedTuple

from cluster.residuals import Residuals
from cluster.types import ErrorQuantiles

_NUM_KEPT: Final = 256
_MIN_KNOWN: Final = 16  # fewer say nothing of a ninetieth percentile
_STALE_S: Final = 30.0
_FIRST_DECADE, _LAST_DECADE = -2, 1  # up to 100 ms, 1 s, 10 s, and above


class Errors:
    """Keeps the errors of the last few hundred predictions."""

    def __init__(self) -> None:
        self._residuals = Residuals(_NUM_KEPT)
        self._differences: deque[float] = deque(maxlen=_NUM_KEPT)
        self._heard_at_s = -math.inf

    def add(self, actual: float, predicted: float, now_s: float) -> None:
        self._residuals.add(actual, predicted)
        self._differences.append(actual - predicted)
        self._heard_at_s = now_s

    @property
    def num_known(self) -> int:
        return len(self._differences)

    @property
    def ratios(self) -> ErrorQuantiles:
        """Gives quantiles of actual / predicted; all 1 while nothing is known."""
        return self._residuals.quantiles()

    @property
    def bias(self) -> float:
        """Mean of actual - predicted, in their unit: above 0, too little was predicted."""
        return math.fsum(self._differences) / max(1, len(self._differences))

    def is_known(self, now_s: float) -> bool:
        """Tells whether they say anything of what is predicted now."""
        return self.num_known >= _MIN_KNOWN and now_s < self._heard_at_s + _STALE_S


class Accuracy:
    """One router's. Seconds are of its monotonic clock."""

    def __init__(self) -> None:
        self.ttft = Errors()
        self.itl = Errors()
        self.cached_tokens = Errors()
        self._by_decade = {each: Errors() for each in range(_FIRST_DECADE, _LAST_DECADE + 1)}

    def first_token(self, ttft: "Compared", cached_tokens: "Compared", now_s: float) -> None:
        self.ttft.add(*ttft, now_s)
        self._by_decade[_decade(ttft.predicted)].add(*ttft, now_s)
        self.cached_tokens.add(*cached_tokens, now_s)

    def answered(self, itl: "Compared", now_s: float) -> None:
        self.itl.add(*itl, now_s)

    def ttft_errors(self, predicted_s: float, now_s: float) -> ErrorQuantiles | None:
        """Gives the errors of predictions like this one; None: too little is known of them."""
        errors = self._by_decade[_decade(predicted_s)]
        return errors.ratios if errors.is_known(now_s) else None


class Compared(NamedTuple):
    actual: float
    predicted: float


def _decade(seconds: float) -> int:
    if seconds <= 0.0:
        return _FIRST_DECADE
    return min(max(math.floor(math.log10(seconds)), _FIRST_DECADE), _LAST_DECADE)


_MAX_CLASSES: Final = 64  # classes of policies before this one are shown, too


@dataclass(slots=True, eq=False)
class ClassCounters:
    num_placed: int = 0
    num_rejected: int = 0  # at admission
    num_started: int = 0  # got a first token
    num_in_time: int = 0  # of these, within the target of TTFT
    num_finished: int = 0
    num_steady: int = 0  # of these, within the target of ITL on average


class Attainment:
    """Keeps counters by class, the least recently used first."""

    def __init__(self) -> None:
        self._classes: OrderedDict[str, ClassCounters] = OrderedDict()

    def of(self, name: str) -> ClassCounters:
        counters = self._classes.setdefault(name, ClassCounters())
        self._classes.move_to_end(name)
        if len(self._classes) > _MAX_CLASSES:
            self._classes.popitem(last=False)
        return counters

    def by_class(self) -> dict[str, ClassCounters]:
        return dict(sorted(self._classes.items()))
