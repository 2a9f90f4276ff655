"""Predicts how long answers are, for a class and a tenant, from those that ended lately.

Bounded, and what is old is forgotten. An answer that was cut by its limit counts as long as it
was: whoever sets a limit sets it again.
"""

import math
from bisect import bisect_left, insort
from collections import OrderedDict, deque
from typing import Final, NamedTuple

PRIOR_TOKENS: Final = 128.0  # what is predicted where nothing is known ...
_PRIOR_WEIGHT: Final = 8  # ... and how many answers that is worth
_NUM_KEPT: Final = 256  # answers of each kind
_MAX_KINDS: Final = 1024


class AnswerKind(NamedTuple):
    """Answers of one kind are taken to be about equally long."""

    service_class: str
    tenant: str


class LengthQuantiles(NamedTuple):
    """Tokens of an answer."""

    p50: int
    p90: int
    p99: int


class _Recent:
    """The last answers of one kind."""

    __slots__ = ("_lengths", "_ordered", "_sum", "median")

    def __init__(self) -> None:
        self._lengths: deque[int] = deque(maxlen=_NUM_KEPT)
        self._ordered: list[int] = []  # the same
        self._sum = 0
        self.median = PRIOR_TOKENS

    def add(self, num_tokens: int) -> None:
        if len(self._lengths) == _NUM_KEPT:
            oldest = self._lengths[0]
            self._sum -= oldest
            del self._ordered[bisect_left(self._ordered, oldest)]
        self._lengths.append(num_tokens)
        insort(self._ordered, num_tokens)
        self._sum += num_tokens
        self.median = self._median()

    @property
    def mean(self) -> float:
        return (self._sum + _PRIOR_WEIGHT * PRIOR_TOKENS) / (len(self._lengths) + _PRIOR_WEIGHT)

    def _median(self) -> float:
        """Gives the median of these and what is assumed."""
        ordered = self._ordered
        position = (len(ordered) + _PRIOR_WEIGHT) // 2
        num_below = bisect_left(ordered, PRIOR_TOKENS)
        if position < num_below:
            return float(ordered[position])
        position -= _PRIOR_WEIGHT
        return float(ordered[position]) if position >= num_below else PRIOR_TOKENS

    def quantiles(self) -> LengthQuantiles:
        ordered = self._ordered
        return LengthQuantiles(
            *(ordered[math.ceil(q * len(ordered)) - 1] for q in (0.5, 0.9, 0.99))
        )


class AnswerLengths:
    def __init__(self) -> None:
        self._all = _Recent()
        self._kinds: OrderedDict[AnswerKind, _Recent] = OrderedDict()  # least recently used first

    @property
    def mean(self) -> float:
        """Averages all that ended lately, whatever their kind."""
        return self._all.mean

    def predicted(self, kind: AnswerKind, max_tokens: int) -> float:
        """Tokens of one answer, `max_tokens` at most."""
        recent = self._kinds.get(kind)
        return min(recent.mean if recent else PRIOR_TOKENS, float(max_tokens))

    def typical(self, kind: AnswerKind, max_tokens: int) -> float:
        """Half the answers have no more tokens: few long ones raise the mean, and not this."""
        recent = self._kinds.get(kind)
        return min(recent.median if recent else PRIOR_TOKENS, float(max_tokens))

    def observe(self, kind: AnswerKind, num_tokens: int) -> None:
        """An answer ended by itself or by its limit."""
        recent = self._kinds.setdefault(kind, _Recent())
        self._kinds.move_to_end(kind)
        if len(self._kinds) > _MAX_KINDS:
            self._kinds.popitem(last=False)
        recent.add(num_tokens)
        self._all.add(num_tokens)

    def quantiles(self, kind: AnswerKind) -> LengthQuantiles | None:
        """None: none has ended."""
        recent = self._kinds.get(kind)
        return recent.quantiles() if recent else None
