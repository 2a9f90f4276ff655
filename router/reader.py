"""Judges whether a client reads what it is sent: a stream nobody reads holds one of our places.

Judged by the progress of writes, by a clock that stands still while we are away. Only the router
judges it: to a worker, a router that was stopped is none that does not read.
"""

import asyncio
from types import TracebackType
from typing import Self

from cluster.lateness import LOOK_S, AttentiveClock
from router.caller import Caller


class Reader:
    """Ends its scope with TimeoutError when one write has stood still for `limit_s`.

    NOTE: looks only while a write stands still: a stream that is read costs a timer at most
    every LOOK_S.
    """

    __slots__ = ("_caller", "_limit_s", "_looker", "_loop", "_num_begun", "_num_ended", "_scope")

    def __init__(self, caller: Caller, limit_s: float) -> None:
        self._caller = caller
        self._limit_s = limit_s
        self._looker: asyncio.TimerHandle | None = None
        self._num_begun = self._num_ended = 0

    async def send(self, data: bytes) -> None:
        self._num_begun += 1
        if self._looker is None:
            attention = AttentiveClock(self._loop.time)
            self._look_later(LOOK_S, attention, self._num_ended, attention.now())
        await self._caller.send(data)
        self._num_ended += 1

    @property
    def has_gone(self) -> bool:
        return self._scope.expired()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._scope = asyncio.timeout(None)
        await self._scope.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._looker is not None:
            self._looker.cancel()
        await self._scope.__aexit__(kind, error, traceback)

    def _look_later(
        self, seconds: float, attention: AttentiveClock, num_ended: int, since: float
    ) -> None:
        self._looker = self._loop.call_later(seconds, self._look, attention, num_ended, since)

    def _look(self, attention: AttentiveClock, num_ended: int, since: float) -> None:
        """Looks at a write that stands still `since` then, when `num_ended` others had ended."""
        self._looker, now = None, attention.now()
        if self._num_begun == self._num_ended:
            return
        if self._num_ended != num_ended:
            num_ended, since = self._num_ended, now
        left_s = since + self._limit_s - now
        if left_s > 0:
            self._look_later(attention.pause_s(left_s), attention, num_ended, since)
        else:
            self._scope.reschedule(self._loop.time())
