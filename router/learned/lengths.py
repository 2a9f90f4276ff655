"""How long answers are: predicted for a class and a tenant from those that ended lately.

Bounded, and what is old is forgotten. An answer that was cut by its limit counts as long as it
was: whoever sets a limit sets it again.
"""

import math
from collections import OrderedDict, deque
from typing import Final, NamedTuple

PRIOR_TOKENS: Final = 128.0  # what is predicted where nothing is known ...
_PRIOR_WEIGHT: Final = 8.0  # ... and how many answers that is worth
_NUM_KEPT: Final = 256  # answers of each kind
_MAX_KINDS: Final = 1024


class Kind(NamedTuple):
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

    __slots__ = ("_lengths", "_sum")

    def __init__(self) -> None:
        self._lengths: deque[int] = deque(maxlen=_NUM_KEPT)
        self._sum = 0

    def add(self, num_tokens: int) -> None:
        if len(self._lengths) == _NUM_KEPT:
            self._sum -= self._lengths[0]
        self._lengths.append(num_tokens)
        self._sum += num_tokens

    @property
    def mean(self) -> float:
        return (self._sum + _PRIOR_WEIGHT * PRIOR_TOKENS) / (len(self._lengths) + _PRIOR_WEIGHT)

    def quantiles(self) -> LengthQuantiles:
        ordered = sorted(self._lengths)
        return LengthQuantiles(
            *(ordered[math.ceil(q * len(ordered)) - 1] for q in (0.5, 0.9, 0.99))
        )


class AnswerLengths:
    def __init__(self) -> None:
        self._all = _Recent()
        self._kinds: OrderedDict[Kind, _Recent] = OrderedDict()  # least recently used first

    @property
    def mean(self) -> float:
        """Of all that ended lately, whatever their kind."""
        return self._all.mean

    def predicted(self, kind: Kind, max_tokens: int) -> float:
        """Tokens of one answer, `max_tokens` at most."""
        recent = self._kinds.get(kind)
        return min(recent.mean if recent else PRIOR_TOKENS, float(max_tokens))

    def observe(self, kind: Kind, num_tokens: int) -> None:
        """An answer ended by itself or by its limit."""
        recent = self._kinds.setdefault(kind, _Recent())
        self._kinds.move_to_end(kind)
        if len(self._kinds) > _MAX_KINDS:
            self._kinds.popitem(last=False)
        recent.add(num_tokens)
        self._all.add(num_tokens)

    def quantiles(self, kind: Kind) -> LengthQuantiles | None:
        """None: none has ended."""
        recent = self._kinds.get(kind)
        return recent.quantiles() if recent else None
