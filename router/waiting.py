"""Requests that no decode worker can take now, though one is expected back. They go on in the order
in which their first tokens are due, as room returns: not all to the first worker back.

Owns nobody's booking and no stream: whoever waits is told that it is its turn, or why not.
"""

import asyncio
import bisect
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from cluster.errors import NoWorker, Overloaded
from cluster.lateness import Patience
from cluster.types import Role, WorkerId
from router.pool import Pool
from router.tries import Tries


class WaitingFigures(NamedTuple):
    """Holds what an operator sees of those that wait."""

    num_requests: int
    num_bytes: int
    longest_s: float


@dataclass(slots=True, eq=False)
class Waiting:
    """One request that waits. Times are of the router's monotonic clock."""

    due_at: float
    since: float
    until: float
    num_bytes: int
    num_choices: int
    tries: Tries
    called: asyncio.Event = field(default_factory=asyncio.Event)
    failure: NoWorker | None = None

    def call(self, failure: NoWorker | None = None) -> None:
        self.failure = failure
        self.called.set()


@dataclass(slots=True, eq=False)
class WaitingRoom:
    """The requests that wait. `changed` is to be called whenever a worker has reported or left, or
    an answer has ended."""

    pool: Pool
    clock: Callable[[], float]
    max_bytes: int
    num_bytes: int = 0
    _waiting: list[Waiting] = field(default_factory=list)  # next first
    _num_called: int = 0  # answers of those who have yet to be placed

    @property
    def is_empty(self) -> bool:
        return not self._waiting

    def figures(self) -> WaitingFigures:
        now = self.clock()
        since = min((each.since for each in self._waiting), default=now)
        return WaitingFigures(len(self._waiting), self.num_bytes, now - since)

    def check_room(self, num_bytes: int) -> None:
        """Raises Overloaded, where those that wait hold as many bytes as they may."""
        if self.num_bytes + num_bytes > self.max_bytes:
            raise Overloaded(
                f"{len(self._waiting)} requests of {self.num_bytes >> 20} MiB wait for a worker"
                " that is expected back, and no more are taken on."
            )

    async def turn(self, waiting: Waiting) -> None:
        """Returns when the request may be placed: try it before anything is awaited.

        Raises:
            NoWorker: it has waited long enough, or nobody is expected any more.
        """
        bisect.insort(self._waiting, waiting, key=lambda each: each.due_at)
        self.num_bytes += waiting.num_bytes
        waiting.called.clear()
        try:
            self.changed()
            async with Patience(max(0.0, waiting.until - self.clock())):
                await waiting.called.wait()
        except TimeoutError:
            if self._serving() <= waiting.tries.excluded:
                waited_s = self.clock() - waiting.since
                raise NoWorker(f"No decode worker came back within {waited_s:.1f} s.") from None
        finally:
            self._waiting.remove(waiting)
            self.num_bytes -= waiting.num_bytes
            if waiting.called.is_set() and waiting.failure is None:
                self._num_called -= waiting.num_choices
        if waiting.failure is not None:
            raise waiting.failure

    def changed(self) -> None:
        """Calls those for whom there is room; all, when nobody more is expected back."""
        if self.is_empty:
            return
        now, serving = self.clock(), self._serving()
        is_anyone_missing = any(self.pool.absences.expected(Role.DECODE, now))
        room = self.pool.room(now) - self._num_called if is_anyone_missing else inf
        for waiting in self._waiting:
            if waiting.called.is_set():
                continue
            if serving <= waiting.tries.excluded:  # nobody that could take it
                if not self.pool.expects(Role.DECODE, waiting.tries.excluded, now):
                    waiting.call(NoWorker("No decode worker is expected back."))
            elif room > 0:
                room -= waiting.num_choices
                self._num_called += waiting.num_choices
                waiting.call()

    def check(self) -> None:
        assert self.num_bytes == sum(each.num_bytes for each in self._waiting)
        assert self._num_called == sum(
            each.num_choices for each in self._waiting if each.called.is_set() and not each.failure
        )

    def _serving(self) -> set[WorkerId]:
        return {load.worker for load in self.pool.snapshot(self.clock()).decode}
