"""An event loop in virtual time: it never waits, and it can be stopped as a process is.

For code that uses no sockets, threads or processes: nothing else makes time pass here.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Idle(selectors.SelectSelector):
    """Where the loop would wait for a while, that while is over at once."""

    def __init__(self) -> None:
        super().__init__()
        self.waited_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("Nothing will ever happen on this loop.")
        if not ready and timeout is not None:
            self.waited_s += max(timeout, 0.0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._idle = _Idle()
        super().__init__(self._idle)

    def time(self) -> float:
        return self._idle.waited_s

    def stand_still(self, seconds: float) -> None:
        """As SIGSTOP and SIGCONT: when it goes on, all that was due meanwhile is late."""
        self._idle.waited_s += seconds


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs it on a loop of its own, which it finds by `asyncio.get_running_loop()`."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coroutine)
