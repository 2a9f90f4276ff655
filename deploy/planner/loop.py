"""The planner's loop: looks at routers and machines, decides, does what brings the machines nearer
to what is wanted, and says why. It acts under a lease of the cluster's store and hands off without
it: then nothing grows or shrinks, and all serve.

Its state begins anew with every lease, but for who drains by the planner's word, which is recorded.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

from cluster.errors import ConfigError, PenstockError
from cluster.store import Store
from cluster.types import Role
from deploy.placement import Wanted
from deploy.planner.direction import Counts
from deploy.planner.lease import Lease
from deploy.planner.observation import observed
from deploy.planner.on_ray import Placements
from deploy.planner.planner import PlannerState, SizingDecision, decide
from deploy.planner.record import MAX_PAST, Deed, PlannerRecord, read_record, write_record
from deploy.planner.roster import (
    Acts,
    PlannedPool,
    Post,
    acts,
    bounds_of,
    leaving_of,
    posts,
    staff,
)
from deploy.planner.routers import Question, Seen
from deploy.planner.settings import PlannerSettings
from simulator.setting import Setting, WorkerMake

logger = logging.getLogger(__name__)
_MAX_TROUBLE: Final = 1000  # characters of a record
Step = Callable[[], Awaitable[list[str]]]  # returns what could not be done


class Machines(Protocol):
    """Places workers. Called from a thread; each may take a while, and returns sentences
    of what could not be done."""

    def look(self) -> Placements: ...
    def place(self, wanted: Sequence[Wanted]) -> list[str]: ...
    def release(self, names: Collection[str]) -> list[str]: ...


class RouterCalls(Protocol):
    """The cluster's routers; `addresses`: of those that run."""

    async def observe(self, addresses: Sequence[str], question: Question, now_s: float) -> Seen: ...
    async def drain(
        self, addresses: Sequence[str], worker: str, limit_s: float, *, is_last: bool
    ) -> None: ...
    async def undrain(self, addresses: Sequence[str], worker: str) -> None: ...


class Look(NamedTuple):
    """Holds what one look found, and what it leads to."""

    routers: tuple[str, ...]
    roster: list[Post]
    now: Counts
    decision: SizingDecision
    acts: Acts


@dataclass(slots=True, eq=False, kw_only=True)
class PlannerLoop:
    name: str  # of this planner, for people
    pools: tuple[PlannedPool, ...]
    settings: PlannerSettings
    lease: Lease
    store: Store
    machines: Machines
    routers: RouterCalls
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    _state: PlannerState = field(default_factory=PlannerState)
    # as of the last look; None: not read since the lease was taken
    _record: PlannerRecord | None = None
    _said: str = ""  # last, of what keeps it from deciding

    async def run(self, end: asyncio.Event) -> None:
        """Decides again and again until `end` is set."""
        is_alone = contextlib.nullcontext() if self.settings.dry_run else self.lease.kept()
        async with is_alone:
            while not end.is_set():
                await self.turn()
                await self.pause(end)

    async def pause(self, end: asyncio.Event) -> None:
        """Waits until the next look, or until `end` is set."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.interval_s):
                await end.wait()

    @property
    def record(self) -> PlannerRecord | None:
        """Gives the record of the last look; None before the first that came to a decision."""
        return self._record

    async def turn(self) -> None:
        """Looks once, if it may, and does what follows. What fails is tried again by the next."""
        if not (self.settings.dry_run or self.lease.is_held):
            self._state, self._record = PlannerState(), None
            holder = self.lease.holder
            self._say(
                f"{holder} holds the lease: this planner waits"
                if holder
                else "no lease, for the store does not answer: nothing is scaled"
            )
            return
        try:
            look = await self._look()
            trouble = await self._follow(look)
        except PenstockError as error:
            self._say(f"nothing is decided: {error.message}")
            return
        self._say("; ".join(trouble))

    def _say(self, text: str) -> None:
        if text and text != self._said:
            logger.warning("%s", text)
        self._said = text

    # -- looking -----------------------------------------------------------------------------

    async def _look(self) -> Look:
        settings, leaving = self.settings, await self._leaving()
        placements = await asyncio.to_thread(self.machines.look)
        if not placements.routers:
            raise ConfigError("no router serves.")
        now_s = self.clock()
        seen = await self.routers.observe(placements.routers, self._question(), now_s)
        roster = posts(self.pools, placements.names, seen.workers, leaving)
        by_role = {role: staff(roster, role) for role in Role}
        observation = observed(
            seen.arrivals,
            list(seen.workers.values()),
            now_s=now_s,
            window_s=settings.window_s,
            most_window_s=settings.most_window_s,
            prefill=by_role[Role.PREFILL],
            decode=by_role[Role.DECODE],
            base=_base(self.pools),
            num_waiting=seen.num_waiting,
            began_s=seen.began_s,
        )
        bounds = bounds_of(self.pools)
        # It rehearses: the lease is renewed meanwhile.
        decision, self._state = await asyncio.to_thread(
            decide, observation, self._state, settings, bounds
        )
        return Look(
            routers=placements.routers,
            roster=roster,
            now=Counts(*(by_role[role].num_there for role in Role)),
            decision=decision,
            acts=acts(self.pools, placements.names, roster, decision.counts),
        )

    async def _leaving(self) -> tuple[str, ...]:
        """Names who drains by a planner's word: of the one before, too, or of the one that
        decides."""
        if self._record is not None and not self.settings.dry_run:
            return self._record.leaving
        try:
            found = await read_record(self.store)
        except ConfigError as error:
            logger.warning("%s It is passed over.", error.message)
            return ()
        if found is None:
            return ()
        if not self.settings.dry_run:
            self._record = found
        return found.leaving

    def _question(self) -> Question:
        settings = self.settings
        is_promised = bounds_of(self.pools).least_decode == 0 and not settings.dry_run
        return Question(
            window_s=max(settings.window_s, settings.most_window_s),
            next_s=settings.interval_s,
            start_s=settings.start_s if is_promised else 0.0,
        )

    # -- doing -------------------------------------------------------------------------------

    async def _follow(self, look: Look) -> list[str]:
        """Returns what could not be done, in sentences."""
        record = self._next_record(look, str(look.acts))
        self._tell(look.acts, record)
        self._record = record
        if self.settings.dry_run:
            return []
        trouble: list[str] = []
        # Whoever comes after this planner knows who drains before anybody does.
        for step in (self._write, *self._steps(look), self._write):
            if not self.lease.is_held:
                return [*trouble, "the lease is lost: hands off"]
            trouble += await step()
            self._record = replace(record, trouble="; ".join(trouble)[:_MAX_TROUBLE])
        return trouble

    def _tell(self, todo: Acts, record: PlannerRecord) -> None:
        """A line for each thing that is done, with why; or for a change of mind that is not."""
        why = f"{record.now} -> {record.wanted}: {record.why}"
        would = "it would do: " if self.settings.dry_run else ""
        for sentence in todo.sentences:
            logger.info("%s%s: %s", would, sentence, why)
        if not todo.sentences and (self._record is None or _sizes(record) != _sizes(self._record)):
            logger.info("%s", why)
        for each in todo.place:
            logger.debug("%s is told: %s", each.name, each.as_json())

    def _steps(self, look: Look) -> Iterator[Step]:
        """One after another, each of them under the lease."""
        todo, routers = look.acts, look.routers
        for name in todo.undrain:
            yield partial(_tried, self.routers.undrain, routers, name)
        if todo.place:
            yield partial(asyncio.to_thread, self.machines.place, todo.place)
        for name in todo.drain:
            drain = partial(self.routers.drain, is_last=not look.decision.counts.decode)
            yield partial(_tried, drain, routers, name, self.settings.leave_s)
        if todo.release:
            yield partial(asyncio.to_thread, self.machines.release, todo.release)

    async def _write(self) -> list[str]:
        assert self._record is not None
        await write_record(self.store, self._record)
        return []

    def _next_record(self, look: Look, what: str) -> PlannerRecord:
        before = self._record or PlannerRecord()
        unix_s, why = self.wall_clock(), look.decision.explain()
        todo = look.acts
        leaving = {*leaving_of(look.roster), *todo.drain} - {*todo.undrain, *todo.release}
        changed = (Deed(unix_s=unix_s, text=f"{what}: {why}"),) if what else ()
        return PlannerRecord(
            holder=self.name,
            unix_s=unix_s,
            interval_s=self.settings.interval_s,
            now=str(look.now),
            wanted=str(look.decision.counts),
            why=why,
            terms=look.decision.terms,
            leaving=tuple(sorted(leaving)),
            past=(*before.past, *changed)[-MAX_PAST:],
        )


async def _tried(tell: Callable[..., Awaitable[None]], *arguments: Any) -> list[str]:
    """A worker that is gone is seen to be by the next look."""
    try:
        await tell(*arguments)
    except PenstockError as error:
        return [error.message]
    return []


def _base(pools: Sequence[PlannedPool]) -> Setting:
    """Gives what workers do not report: what each of them costs."""
    gpus = {pool.role: round(pool.sample.resources.get("GPU", 0.0)) for pool in pools}
    makes = {role: WorkerMake(num_gpus=max(1, gpus.get(role, 1))) for role in Role}
    return Setting(
        num_prefill=0, num_decode=1, prefill=makes[Role.PREFILL], decode=makes[Role.DECODE]
    )


def _sizes(record: PlannerRecord) -> tuple[str, str]:
    return record.wanted, record.now
