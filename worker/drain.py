"""Takes one life of a worker out of service, whoever asks for it: a signal, an operator, or a
change of role.

Nothing new begins; what is in progress may end until a bound and is cut off then: whoever waits
for it goes on elsewhere. Once it is drained the worker waits to be told to serve again, or its
life ends: for another in the other role, or with its process. Knows no socket and no engine.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from cluster.errors import Draining
from cluster.open_calls import OpenCalls
from cluster.types import DrainReport, Role

logger = logging.getLogger(__name__)
MAX_LIMIT_S: Final = 86_400.0
LAST_WORDS_S: Final = 2.0  # for what was cut off to give back what it held
SETTLE_S: Final = 5.0  # for others to say that they write nothing any more


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainOrder:
    """Says until when, and for what, a worker drains."""

    since: float
    until: float
    then: Role | None = None  # of the next life
    ends: bool = False  # the process


class Drain:
    """The order under which a worker drains, if there is one, and what becomes of it."""

    def __init__(self, open_calls: OpenCalls, clock: Callable[[], float] = time.monotonic) -> None:
        """`open_calls` must have ended before the worker is drained."""
        self._open_calls = open_calls
        self._clock = clock
        self._order: DrainOrder | None = None
        self._changed = asyncio.Event()

    @property
    def num_open_calls(self) -> int:
        """Counts the calls that must end before the worker is drained."""
        return self._open_calls.num

    def begin(self, limit_s: float, *, then: Role | None = None, ends: bool = False) -> None:
        """Gives what is in progress so long from now. Another order replaces the one before,
        unless the process is to end: then this raises Draining."""
        self._check_goes_on()
        now = self._clock()
        since = self._order.since if self._order is not None else now
        self._set(DrainOrder(since=since, until=now + limit_s, then=then, ends=ends))

    def undo(self) -> None:
        """The worker serves again. Raises Draining where its process is to end."""
        self._check_goes_on()
        self._set(None)

    def report(self) -> DrainReport | None:
        """Says how it goes; None: the worker does not drain."""
        if (order := self._order) is None:
            return None
        now = self._clock()
        return DrainReport(
            seconds=now - order.since,
            left_s=max(0.0, order.until - now),
            then=order.then,
            ends=order.ends,
        )

    async def follow(
        self,
        *,
        changed: Callable[[], None],
        served: Sequence[OpenCalls],
        at_rest: Callable[[], Awaitable[None]],
    ) -> Role | None:
        """Follows orders until this life is over; returns the role of the next one, or None.

        `changed` is called with each order. At the bound the calls in `served` are cut off.
        `at_rest` returns when no KV may move into our memory or out of it: until then no other
        life can have it.
        """
        while True:
            self._changed.clear()
            order = self._order
            for calls in served if order is None else ():
                calls.is_cut_off = False
            changed()
            if order is not None and await self._is_drained(order, served):
                if order.ends:
                    return None
                if order.then is not None and await self._is_at_rest(order, at_rest):
                    return order.then
            await self._changed.wait()

    async def _is_drained(self, order: DrainOrder, served: Sequence[OpenCalls]) -> bool:
        """Tells whether nothing is in progress, as far as we can help. False: another order."""
        await self._wait(self._open_calls.none(), order.until)
        if self._order is order and self._open_calls.num:
            logger.warning("%d calls are cut off: the drain took too long", self._open_calls.num)
            for calls in served:
                calls.cut_off()
            await self._wait(self._open_calls.none(), self._clock() + LAST_WORDS_S)
        return self._order is order

    async def _is_at_rest(self, order: DrainOrder, at_rest: Callable[[], Awaitable[None]]) -> bool:
        """False: the order is another by now; or none, and the worker serves on in its role."""
        has_settled = await self._wait(at_rest(), self._clock() + SETTLE_S)
        if self._order is not order:
            return False
        if not has_settled:
            logger.error("it serves on as it was: KV may move into its pool yet, or out of it")
            self.undo()
            return False
        return True

    async def _wait(self, what: Awaitable[None], until: float) -> bool:
        """Waits for its end, until then, or until there is another order; returns whether it ended.
        Raises what it does."""
        wanted = asyncio.ensure_future(what)
        waits = {wanted, asyncio.ensure_future(self._changed.wait())}
        try:
            left_s = max(0.0, until - self._clock())
            done, _ = await asyncio.wait(waits, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if wanted in done:
                wanted.result()
            return wanted in done
        finally:
            for wait in waits:
                wait.cancel()

    def _set(self, order: DrainOrder | None) -> None:
        self._order = order
        self._open_calls.is_draining = order is not None
        self._changed.set()

    def _check_goes_on(self) -> None:
        if self._order is not None and self._order.ends:
            raise Draining("This worker was told to end: it drains, and does nothing else.")
