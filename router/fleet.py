"""Who is followed: members of the store that fit this router, one watcher each.

A worker leaves when its record has lapsed and it has fallen silent, or when a newer life of it
registers; then its calls end, and the index forgets it at once.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Never

from cluster.errors import PenstockError
from cluster.fingerprint import IDENTITY, differences
from cluster.membership import Membership
from cluster.types import Incarnation, Member, WorkerAddress, WorkerId
from router.links import Links
from router.placer import Placer
from router.watcher import Watcher

logger = logging.getLogger(__name__)

_INTERVAL_S = 0.5  # between two looks at the store, when nobody registers here
WARM_UP_S = 3.0  # at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a worker must share with this router: else its hashes and ids mean other things."""

    model: str
    model_digest: str
    tokenizer_digest: str
    template_digest: str
    hash_grain: int

    def mismatch(self, member: Member) -> list[str]:
        """What differs, a line each."""
        model = differences(self, member, ("model",))
        return model + differences(self, member.worker.fingerprint, IDENTITY)


@dataclass(slots=True, eq=False)
class _Followed:
    incarnation: Incarnation
    watcher: Watcher
    task: asyncio.Task[Never]

    @property
    def is_silent(self) -> bool:
        return not self.watcher.answered.is_set()


class Fleet:
    def __init__(
        self,
        *,
        membership: Membership,
        identity: Identity,
        links: Links,
        placer: Placer,
        clock: Callable[[], float],
        gather_s: float = 0.0,
    ) -> None:
        """`gather_s`: so long workers may take to come back to a router that starts anew."""
        self._membership = membership
        self.identity = identity
        self._links = links
        self._placer = placer
        self._clock = clock
        self._followed: dict[WorkerId, _Followed] = {}
        self._turned_away: set[Incarnation] = set()
        self._changed = asyncio.Event()
        self._gather_s = gather_s
        self.is_warm = asyncio.Event()  # those who are here have told what they hold
        self.is_store_away = False

    def refresh(self) -> None:
        """Someone registered or left: look now."""
        self._changed.set()

    def num_gaps(self, worker: WorkerId) -> int:
        """How often events of this life of the worker were missed, and all asked for anew."""
        followed = self._followed.get(worker)
        return followed.watcher.num_gaps if followed else 0

    async def run(self) -> Never:
        """Follows the members until cancelled."""
        async with asyncio.TaskGroup() as watchers:
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
                await self._follow(member, watchers)
        present = {member.worker.worker_id for member in members}
        for worker in self._followed.keys() - present - self._placer.pool.reporting(self._clock()):
            await self._lose(worker)

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

    async def _follow(self, member: Member, watchers: asyncio.TaskGroup) -> None:
        worker = member.worker
        if followed := self._followed.get(worker.worker_id):
            if followed.incarnation == worker.incarnation:
                return
            await self._lose(worker.worker_id)
        logger.info("%s worker %s joins, at %s", member.role, worker.worker_id, worker.address)
        self._placer.pool.join(member)
        watcher = self._watcher(worker)
        task = watchers.create_task(watcher.run(), name=f"watch {worker.worker_id}")
        self._followed[worker.worker_id] = _Followed(worker.incarnation, watcher, task)

    def _watcher(self, worker: WorkerAddress) -> Watcher:
        placer = self._placer
        return Watcher(self._links.open(worker), placer.index, placer.pool, self._clock)

    async def _lose(self, worker: WorkerId) -> None:
        followed = self._followed.pop(worker)
        logger.info("worker %s is gone", worker)
        followed.task.cancel()
        followed.watcher.answered.set()  # nobody need wait for it
        self._placer.leave(worker, followed.incarnation)
        await self._links.lose(worker, followed.incarnation)

    def _fits(self, member: Member) -> bool:
        diff = self.identity.mismatch(member)
        if diff and member.worker.incarnation not in self._turned_away:
            self._turned_away.add(member.worker.incarnation)
            logger.error("%s is not used: %s", member.worker.worker_id, "; ".join(diff))
        return not diff
