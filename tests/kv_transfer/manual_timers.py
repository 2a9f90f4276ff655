"""Time that stands still until it is advanced."""

import heapq
import itertools
from collections.abc import Callable

from kv_transfer.timers import TimerHandle


class ManualTimers:
    __slots__ = ("_now", "_numbers", "_pending")

    def __init__(self) -> None:
        self._now = 0.0
        self._numbers = itertools.count()
        self._pending: list[tuple[float, int, ManualHandle]] = []

    def now(self) -> float:
        return self._now

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> TimerHandle:
        handle = ManualHandle(callback)
        heapq.heappush(self._pending, (self._now + delay_s, next(self._numbers), handle))
        return handle

    def advance(self, seconds: float) -> None:
        until = self._now + seconds
        while self._pending and self._pending[0][0] <= until:
            self._now, _, handle = heapq.heappop(self._pending)
            handle.fire()
        self._now = until

    def stand_still(self, seconds: float) -> None:
        """As after SIGSTOP: the clock went on, and what was due meanwhile happens late, now."""
        self._now += seconds
        due = []
        while self._pending and self._pending[0][0] <= self._now:
            due.append(heapq.heappop(self._pending)[2])
        for handle in due:
            handle.fire()


class ManualHandle:
    __slots__ = ("_callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self._callback = None

    def fire(self) -> None:
        if self._callback is not None:
            self._callback()
