"""Follows members of the store that fit this router, by one watcher each.

A worker is lost when its record has lapsed, it reports nothing and none of its streams moves, all
of it while we watched: then its calls end, and the index forgets it at once. A life of which a
newer one registers is forgotten, too; its calls go on for as long as they move.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Never

from cluster.errors import PenstockError
from cluster.fingerprint import IDENTITY, differences
from cluster.histogram import Histogram
from cluster.lateness import AttentiveClock
from cluster.membership import Membership
from cluster.types import Incarnation, Member, WorkerAddress, WorkerId
from cluster.wire_version import unspoken
from router.links import Link, Links
from router.placer import Placer
from router.standing import SILENCE_S
from router.watcher import Watcher

logger = logging.getLogger(__name__)

_INTERVAL_S = 0.5  # between two looks at the store, unless somebody joins here
WARM_UP_S = 3.0  # at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Holds what a worker must share with this router: else its hashes and ids mean other things.
    And the router must speak its wire version."""

    model: str
    model_digest: str
    tokenizer_digest: str
    template_digest: str
    hash_grain: int

    def mismatch(self, member: Member) -> list[str]:
        """Lists what differs, a line each."""
        fingerprint = member.worker.fingerprint
        lines = differences(self, member, ("model",)) + differences(self, fingerprint, IDENTITY)
        return lines + unspoken(fingerprint.wire_version)


@dataclass(slots=True, eq=False)
class _Followed:
    link: Link
    watcher: Watcher
    task: asyncio.Task[Never]
    num_messages: int = 0  # of its streams, when we looked last
    moved_at: float = -inf  # in time that we watched

    @property
    def incarnation(self) -> Incarnation:
        return self.link.worker.incarnation

    @property
    def is_silent(self) -> bool:
        return not self.watcher.answered.is_set()

    def moves(self, attended: float) -> bool:
        """Tells whether something came on its streams lately."""
        if self.num_messages != (num := self.link.num_messages):
            self.num_messages, self.moved_at = num, attended
        return attended - self.moved_at < SILENCE_S


class Fleet:
    def __init__(
        self,
        *,
        membership: Membership,
        identity: Identity,
        links: Links,
        placer: Placer,
        clock: Callable[[], float],
        attention: AttentiveClock,
        lag: Histogram,
        gather_s: float = 0.0,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`lag` is told how late this loop is. `gather_s`: so long workers may take to come back to
        a router that starts anew. `changed` is called when a worker has reported or has gone."""
        self._membership = membership
        self.identity = identity
        self._links = links
        self._placer = placer
        self._clock = clock
        self._attention = attention
        self._lag = lag
        self._tell_changed = changed
        self._followed: dict[WorkerId, _Followed] = {}
        self._superseded: list[_Followed] = []  # whose streams still move
        self._turned_away: set[Incarnation] = set()
        self._changed = asyncio.Event()
        self._gather_s = gather_s
        self.is_warm = asyncio.Event()  # those who are here have told what they hold
        self.is_store_away = False

    def follows(self, worker: WorkerAddress) -> bool:
        """Tells whether this life of it is known: it has only said again that it is there."""
        followed = self._followed.get(worker.worker_id)
        return followed is not None and followed.incarnation == worker.incarnation

    def refresh(self) -> None:
        """Someone joined or left: look now."""
        self._changed.set()

    def num_gaps(self, worker: WorkerId) -> int:
        """Counts how often events of this life of the worker were missed, and all asked anew."""
        followed = self._followed.get(worker)
        return followed.watcher.num_gaps if followed else 0

    async def run(self) -> Never:
        """Follows the members until cancelled."""
        async with asyncio.TaskGroup() as watchers:
            watchers.create_task(self._attention.keep(self._lag), name="attend")
            await self._reconcile(watchers)
            watchers.create_task(self._warm_up(), name="warm up")
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_INTERVAL_S):
                        await self._changed.wait()
                self._changed.clear()
                await self._reconcile(watchers)

    async def _warm_up(self) -> None:
        """A router that starts beside workers that run would place their prompts blindly."""
        try:
            async with asyncio.timeout(WARM_UP_S):
                await asyncio.sleep(self._gather_s)
                while silent := [each for each in self._followed.values() if each.is_silent]:
                    await silent[0].watcher.answered.wait()
        except TimeoutError:
            logger.warning("placing begins, though not all workers have told what they hold")
        self.is_warm.set()

    async def _reconcile(self, watchers: asyncio.TaskGroup) -> None:
        members = await self._members()
        if members is None:
            return
        self._turned_away &= {member.worker.incarnation for member in members}
        for member in members:
            if self._fits(member):
                self._follow(member, watchers)
        await self._lose_the_silent({member.worker.worker_id for member in members})

    async def _lose_the_silent(self, present: set[WorkerId]) -> None:
        """Gives up the silent; of those `present`, and of others that report, nothing is ended."""
        attended, pool = self._attention.now(), self._placer.pool
        moving = {worker for worker, each in self._followed.items() if each.moves(attended)}
        for worker in self._followed.keys() - present - pool.reporting(self._clock()) - moving:
            logger.info("worker %s is gone", worker)
            await self._links.lose(self._forget(worker).link)
        for each in [each for each in self._superseded if not each.moves(attended)]:
            self._superseded.remove(each)
            await self._links.lose(each.link)

    async def _members(self) -> list[Member] | None:
        """None while the store is away: workers are the truth about themselves, so we go on
        with those that we know."""
        try:
            members = await self._membership.members()
        except PenstockError as error:
            if not self.is_store_away:
                logger.warning("the store of members does not answer: %s", error)
            self.is_store_away = True
            return None
        if self.is_store_away:
            logger.info("the store of members answers again")
        self.is_store_away = False
        return members

    def _follow(self, member: Member, watchers: asyncio.TaskGroup) -> None:
        worker = member.worker
        if self.follows(worker):
            return
        if worker.worker_id in self._followed:
            self._supersede(worker.worker_id)
        logger.info("%s worker %s joins, at %s", member.role, worker.worker_id, worker.address)
        self._placer.pool.join(member)
        link, placer = self._links.open(worker), self._placer
        watcher = Watcher(link, placer.index, placer.pool, self._clock, self._tell_changed)
        task = watchers.create_task(watcher.run(), name=f"watch {worker.worker_id}")
        self._followed[worker.worker_id] = _Followed(link, watcher, task)

    def _supersede(self, worker: WorkerId) -> None:
        """A newer life registered. The streams of the older one end when they stand still."""
        logger.info("worker %s has begun a new life", worker)
        superseded = self._forget(worker)
        superseded.moved_at = self._attention.now()
        self._superseded.append(superseded)

    def _forget(self, worker: WorkerId) -> _Followed:
        """Neither reports nor requests of this life of it count any more."""
        followed = self._followed.pop(worker)
        followed.task.cancel()
        followed.watcher.answered.set()  # nobody need wait for it
        self._placer.books.leave(worker, followed.incarnation)
        self._links.drop(worker)
        self._tell_changed()
        return followed

    def _fits(self, member: Member) -> bool:
        diff = self.identity.mismatch(member)
        if diff and member.worker.incarnation not in self._turned_away:
            self._turned_away.add(member.worker.incarnation)
            logger.error("%s is not used: %s", member.worker.worker_id, "; ".join(diff))
        return not diff
