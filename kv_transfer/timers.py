"""Time as the transfers see it: a monotonic clock and one-shot timers, both injected."""

import asyncio
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
