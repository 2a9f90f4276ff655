"""Remembers what came lately: when, how long it was, what of it was cached, how it went on. A
planner sizes the cluster for this, not for an average of it.

Bounded: the oldest is forgotten first. Nothing is kept for longer than somebody asks for it.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import Final

from router.learned.reuse import Reuse

_NUM_KEPT: Final = 4096


@dataclass(slots=True, eq=False, kw_only=True)
class Arrival:
    """One request, filled in as it goes on."""

    arrived_at: float
    num_prompt_tokens: int
    num_cached_tokens: int  # as predicted, then as the worker found
    num_output_tokens: float  # as predicted, then as they were
    target_ttft_s: float
    target_itl_s: float
    num_reusable: tuple[int, ...] = ()  # tokens that a cache of each of `reuse.SIZES` would hold
    ttft_s: float | None = None  # None: no token yet
    itl_s: float | None = None  # None: it has not ended
    ended_s: float | None = None  # None: it goes on
    is_lost: bool = False  # refused or failed

    def is_good(self, now_s: float) -> bool | None:
        """Tells whether its targets were met; None while that is open, and for good where its
        caller gave it up before anything was late."""
        waited_s = (now_s if self.ended_s is None else self.ended_s) - self.arrived_at
        ttft_s = waited_s if self.ttft_s is None else self.ttft_s
        if self.is_lost or ttft_s > self.target_ttft_s:
            return False
        return None if self.itl_s is None else self.itl_s <= self.target_itl_s


class Traffic:
    def __init__(self) -> None:
        self._kept_until = -inf
        self._began_s = inf
        self._arrivals: deque[Arrival] = deque(maxlen=_NUM_KEPT)
        self.reuse = Reuse()

    def keep(self, now_s: float, until_s: float) -> None:
        """Remembers what comes until then; what came before only if it was kept all along."""
        if not self.is_kept(now_s):
            self._arrivals.clear()
            self._began_s = now_s
        self._kept_until = max(self._kept_until, until_s)

    def is_kept(self, now_s: float) -> bool:
        return now_s < self._kept_until

    @property
    def since_s(self) -> float:
        """Whatever came from then on is remembered."""
        is_full = len(self._arrivals) == self._arrivals.maxlen
        return self._arrivals[0].arrived_at if is_full else self._began_s

    def begin(self, arrival: Arrival) -> None:
        """It has come; whether it is placed or not."""
        self._arrivals.append(arrival)

    @property
    def arrivals(self) -> Iterable[Arrival]:
        """Gives the arrivals that are remembered, as they came to be placed."""
        return self._arrivals
