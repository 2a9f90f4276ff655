"""Decides when a process that lives is frozen and must be killed: until then nobody may use again
what it may still write.

Patience with it is spent while it is seen to be unwell, the faster the surer it is that nothing
will come. It is whole again once the process is well, or waits for a processor. Time in which
the observer itself was stopped or starved is not counted: it blames nobody.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from cluster.lateness import LOOK_S, AttentiveClock
from deploy.child import Child
from deploy.process_state import Condition, Vitals, condition, read_vitals
from deploy.vitals import Health, Pulse, health_channel

T = TypeVar("T")

# Whatever its health says: it cannot help it, or a person has it in hand, or nobody looked.
EXCUSED = frozenset({Condition.UNSEEN, Condition.TRACED, Condition.STARVED})
NUM_LOOKS = 4  # at least so many while the shortest patience is spent


class Ailment(StrEnum):
    """Names the way in which a process is unwell."""

    STOPPED = "it was stopped"
    IDLE = "it answered nothing and did nothing"
    WEDGED = "its steps do not end"
    SILENT = "it answered nothing"
    UNREADY = "it was not ready"


# For how long, in seconds, a process may be unwell in each way.
Limits = Mapping[Ailment, float]


class Frozen(Exception):
    """Patience with a process is over: its message completes a sentence about the process."""


def fault_of(answer: Health, seen: Condition) -> Ailment | None:
    """Judges one moment; None is well, or excused."""
    if seen in EXCUSED:
        return None
    if seen is Condition.STOPPED:
        return Ailment.STOPPED
    if answer is Health.SILENT and seen is Condition.IDLE:
        return Ailment.IDLE
    faults = {
        Health.SILENT: Ailment.SILENT,
        Health.WEDGED: Ailment.WEDGED,
        Health.STARTING: Ailment.UNREADY,
    }
    return faults.get(answer)


class Scrutiny:
    """Weighs how much patience with one process is spent, given the time and what was seen."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._spent: float | None = None  # 1 is all of it; None while the process is well
        self._vitals: Vitals | None = None
        self._looked_at = 0.0

    @property
    def is_calm(self) -> bool:
        """Tells whether nothing of the patience is spent."""
        return self._spent is None

    def look(self, answer: Health, vitals: Vitals | None, now: float) -> Ailment | None:
        """Returns the fault with which all patience is spent."""
        before, self._vitals = self._vitals, vitals
        elapsed_s, self._looked_at = now - self._looked_at, now
        if elapsed_s <= 0:
            return None  # the observer is only just back
        fault = fault_of(answer, condition(before, vitals, elapsed_s))
        if fault is None:
            self._spent = None
        elif self._spent is None:
            self._spent = 0.0  # how long before this look it began is not known
        else:
            self._spent += elapsed_s / self._limits[fault]
        return fault if self._spent is not None and self._spent >= 1 else None


async def until_frozen(child: Child, limits: Limits) -> str:
    """Looks at a process that serves until it is frozen; says how."""
    look_s = _look_s(limits)
    async with health_channel(*_door(child)) as channel:
        pulse = Pulse(channel, child.plan.part, look_s)
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(pulse.follow())
            fault = await _spent(child, limits, lambda: pulse.answer)
            asking.cancel()
    return f"did not serve for {limits[fault]:g} s and was killed: {fault}"


def _door(child: Child) -> tuple[str, Path | None]:
    """Gives the address where its health is asked, and the secrets that are needed there."""
    secrets_file = Path(child.plan.config["secrets_file"])
    if child.plan.part.is_worker:
        return child.address, secrets_file
    # A router that drains has closed its front door, which speaks TLS or not whatever its secrets
    # are good for.
    internal = child.ready.get("internal")
    return (internal, secrets_file) if internal else (child.address, None)


async def until_given_up(child: Child, limits: Limits) -> str:
    """Looks at a process that starts until it will not be ready any more; says why."""
    fault = await _spent(child, limits, lambda: Health.STARTING)
    return f"was not ready within {limits[fault]:g} s: {fault}"


async def _spent(child: Child, limits: Limits, answer: Callable[[], Health]) -> Ailment:
    """Returns when all patience with a process is spent."""
    attention, scrutiny = AttentiveClock(), Scrutiny(limits)
    while True:
        said = answer()
        vitals = read_vitals(child.pid, in_detail=said is not Health.WELL)
        if fault := scrutiny.look(said, vitals, attention.now()):
            return fault
        is_well = said is Health.WELL and scrutiny.is_calm
        await asyncio.sleep(attention.pause_s(LOOK_S if is_well else _look_s(limits)))


def _look_s(limits: Limits) -> float:
    return min(LOOK_S, min(limits.values()) / NUM_LOOKS)


async def unless(given_up: Coroutine[Any, Any, str], awaited: Coroutine[Any, Any, T]) -> T:
    """Waits for something of a process. Raises Frozen when it is given up first."""
    patience, waiting = asyncio.create_task(given_up), asyncio.create_task(awaited)
    try:
        await asyncio.wait({patience, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        raise Frozen(patience.result())
    finally:
        for task in (patience, waiting):
            task.cancel()
        await asyncio.gather(patience, waiting, return_exceptions=True)
