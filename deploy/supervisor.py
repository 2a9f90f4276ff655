"""Keeps one part of a cluster alive: watches its process, kills it when it is frozen, and starts
it again for as long as it takes, whatever goes wrong on the way."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Never

from cluster.errors import StartupError
from deploy.child import Child, tail
from deploy.frozen import Frozen, Limits, unless, until_frozen, until_given_up
from deploy.plan import ProcessPlan

NUM_DEATHS = 3  # within CRASH_LOOP_S
CRASH_LOOP_S = 60.0
LONG_LIFE = 10  # times the backoff: what dies once more after that may come back at once


class Backoff:
    """Seconds until the next try: they double up to the last, and start anew after a long life."""

    def __init__(self, first_s: float, last_s: float) -> None:
        self.next_s = first_s
        self._first_s = first_s
        self._last_s = last_s

    def take(self) -> float:
        taken_s, self.next_s = self.next_s, min(2 * self.next_s, self._last_s)
        return taken_s

    def lived(self, seconds: float) -> None:
        """Tells how long the process of the last try lived."""
        if seconds > min(LONG_LIFE * self.next_s, self._last_s):
            self.next_s = self._first_s


class Supervisor:
    """Has one process at a time, and always the same part."""

    def __init__(
        self,
        child: Child | None,
        *,
        name: str,
        start: Callable[[], Awaitable[Child]],
        bury: Callable[[], object],
        limits: Limits,
        backoff: Backoff,
        say: Callable[[str], None],
    ) -> None:
        """`child`: None where it is still to be started; `bury` takes away what a dead process
        has left."""
        self.num_restarts = 0
        self._name = name
        self._child = child
        self._start = start
        self._bury = bury
        self._limits = limits
        self._backoff = backoff
        self._say = say
        self._deaths: deque[float] = deque(maxlen=NUM_DEATHS)

    async def run(self) -> Never:
        """Supervises until cancelled."""
        while True:
            try:
                await self._keep_one()
            except Exception as error:  # of any step: what is supervised is tried again for ever
                self._tell(error)
            await asyncio.sleep(self._backoff.take())

    async def _keep_one(self) -> None:
        """One life, from its start, where it has not begun yet, to its end."""
        if self._child is None or not self._child.is_running:
            is_first = self._child is None
            self._child = await self._start()
            self.num_restarts += not is_first
        born = time.monotonic()
        end = await until_dead(self._child, self._limits)
        self._backoff.lived(time.monotonic() - born)
        self._say(f"{self._name} {end}; starting it again")
        self._count_death(self._child.log)
        self._bury()

    def _count_death(self, log: Path) -> None:
        now = time.monotonic()
        self._deaths.append(now)
        if len(self._deaths) == NUM_DEATHS and now - self._deaths[0] < CRASH_LOOP_S:
            self._say(
                f"{self._name} DIES AGAIN AND AGAIN: {NUM_DEATHS} times within"
                f" {now - self._deaths[0]:.0f} s. The end of {log}:\n{tail(log)}"
            )

    def _tell(self, error: BaseException) -> None:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        name, kind = self._name, type(error).__name__
        what = str(error) if isinstance(error, StartupError) else f"{name}: {kind}: {error}"
        self._say(f"{what}\nTrying again in {self._backoff.next_s:g} s.")


async def start(
    plan: ProcessPlan,
    config: Path,
    log: Path,
    limits: Limits,
    *,
    spawned: Callable[[Child], object] = lambda child: None,
) -> Child:
    """Returns when the process says that it is ready; StartupError tells why it is not. `spawned`
    is told of it before."""
    child = await Child.spawn(plan, config, log)
    try:
        spawned(child)
        await unless(until_given_up(child, limits), child.until_ready())
    except Frozen as frozen:
        raise child.failure(str(frozen)) from None
    finally:
        if not child.ready:
            await child.stop_uninterrupted()
    return child


async def until_dead(child: Child, limits: Limits) -> str:
    """Waits for the end of a process, kills it if it is frozen; says what happened."""
    try:
        end = f"ended with code {await unless(until_frozen(child, limits), child.wait())}"
    except Frozen as frozen:
        end = str(frozen)
    await child.stop(grace_s=0)
    return end
