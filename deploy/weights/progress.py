"""Says how far a pull is, in words. Told by several threads, asked by one."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

_RECENT: Final = 5  # lines, over which the rate is taken
_MB: Final = 1e6


class PullProgress:
    """Bytes that are here, of all."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self.begin(0, 0)

    def begin(self, here: int, total: int) -> None:
        self._here, self._total = here, total
        self._marks = deque([(self._clock(), here)], maxlen=_RECENT)

    def add(self, num_bytes: int) -> None:
        with self._lock:
            self._here += num_bytes

    def line(self) -> str:
        """`1,200.0 of 14,500.5 MB, 310 MB/s, 43 s left`."""
        with self._lock:
            here = self._here
        since, before = self._marks[0]
        now = self._clock()
        self._marks.append((now, here))
        rate = (here - before) / (now - since) if now > since else 0.0
        left = f", {_duration((self._total - here) / rate)} left" if rate > 0 else ""
        done = f"{here / _MB:,.1f} of {self._total / _MB:,.1f} MB"
        return f"{done}, {rate / _MB:,.0f} MB/s{left}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
