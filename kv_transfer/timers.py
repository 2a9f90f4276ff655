"""Time as the transfers see it: a monotonic clock and one-shot timers, both injected."""

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from typing import Protocol


class TimerHandle(Protocol):
    def cancel(self) -> None: ...


class Timers(Protocol):
    def now(self) -> float:
        """Monotonic seconds; may be called from any thread."""
        ...

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> TimerHandle:
        """Runs the callback on the event loop, once, unless it is cancelled."""
        ...


class LoopTimers:
    """The event loop's timers. The clock is not the loop's: uvloop's is only as fresh as its
    last turn, and a process that was stopped must see the truth before it writes on."""

    __slots__ = ("_loop",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def now(self) -> float:
        return time.monotonic()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> TimerHandle:
        return self._loop.call_later(delay_s, callback)


class ManualTimers:
    """For tests and simulations: time stands still until it is advanced."""

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
