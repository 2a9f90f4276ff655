"""Time that an observer was there to see. Whoever judges that another is late, silent or dead
first handles what has arrived, and holds no second of its own absence against anyone.

A process is away while it is stopped, suspended or starved, and while its loop is held: what
others have said meanwhile lies in its sockets. Leases that a writer must not outlive go by the
true clock, not by this one. In virtual time nobody is late: give the clock itself instead.
"""

import asyncio
import time
from collections.abc import Callable
from math import inf
from types import TracebackType
from typing import Never, Self

from cluster.histogram import Histogram

LOOK_S = 0.25  # between two looks at most; and once back, so long what has arrived is handled
LATE_S = 0.5  # a longer gap is an absence


class AttentiveClock:
    """A clock that stands still while its owner is away, and until it has settled in again.

    It shows the true clock's time until the first absence, and runs behind it by all of them
    since. `now` itself is the look: it must be asked every LOOK_S, by `keep` if by nobody else.
    Belongs to one thread.
    """

    __slots__ = ("_clock", "_looked_at", "_shown", "absent_s", "settled_at")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looked_at = self._shown = clock()
        self.settled_at = -inf  # by the clock: when what came in the last absence was handled
        self.absent_s = 0.0  # in all

    def now(self) -> float:
        """Looks at the clock. Compare what it gives with what it gave, not with other clocks."""
        began, now = self._looked_at, self._clock()
        self._looked_at = now
        if now - began > LATE_S:
            self._was_away(began, now)
        if now >= self.settled_at:
            self._shown = now - self.absent_s
        return self._shown

    def pause_s(self, left_s: float) -> float:
        """Says when to look again, for whoever waits for so long yet."""
        settling_s = self.settled_at - self._looked_at
        return settling_s if settling_s > 0 else min(left_s, LOOK_S)

    async def keep(self, lag: Histogram) -> Never:
        """Looks until cancelled. A gap is noticed by looking; nothing tells of it. `lag` is told
        by how many seconds each look was late."""
        while True:
            due_at = self._clock() + LOOK_S
            await asyncio.sleep(LOOK_S)
            lag.add(max(0.0, self._clock() - due_at))
            self.now()

    def _was_away(self, began: float, now: float) -> None:
        """One that is starved all the time must judge at last: what follows at once on an
        absence is none, so that some of it counts."""
        if began < self.settled_at:
            self.absent_s += now - began - LATE_S
        else:
            self.absent_s += now - began
            self.settled_at = now + LOOK_S


class Limit:
    """A time limit for what another is waited for, in seconds that the waiting one was there.

    For loops that wait in steps: `while not select(limit.pause_s()): pass`.
    """

    __slots__ = ("_attention", "_until")

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._attention = AttentiveClock(clock)
        self._until = self._attention.now() + limit_s

    def left_s(self) -> float:
        """Raises TimeoutError when none are left."""
        left_s = self._until - self._attention.now()
        if left_s <= 0:
            raise TimeoutError("timed out")
        return left_s

    def pause_s(self) -> float:
        """Says how long to wait before this is asked again; raises TimeoutError when it is over."""
        return self._attention.pause_s(self.left_s())


class Patience:
    """`asyncio.timeout` for what another is waited for: it counts only the seconds in which this
    loop ran, and an answer that has arrived is found before it is called late.

    Raises TimeoutError when the limit is over; None is without end.
    """

    __slots__ = ("_limit", "_limit_s", "_loop", "_scope", "_timer")

    def __init__(self, limit_s: float | None) -> None:
        self._limit_s = limit_s
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._scope = asyncio.timeout(None)
        await self._scope.__aenter__()
        if self._limit_s is not None:
            self._limit = Limit(self._limit_s, self._loop.time)
            self._look()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._scope.__aexit__(kind, error, traceback)

    def _look(self) -> None:
        try:
            self._timer = self._loop.call_later(self._limit.pause_s(), self._look)
        except TimeoutError:
            self._scope.reschedule(self._loop.time())
