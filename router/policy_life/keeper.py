"""The life of the policy in a running router: from a file and from operators into force, on trial,
and back. A wrong document never takes effect: the last good one goes on.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Never

from cluster.document.difference import change_text, differences
from cluster.errors import ConfigError, InvalidRequest, PenstockError, StoreUnavailable
from router.placer import Placer
from router.policy_file.document import PolicyDocument, effective
from router.policy_file.kind import POLICY
from router.policy_file.review import risks
from router.policy_life.file_watch import PolicyFile
from router.policy_life.live import LiveRollout
from router.policy_life.store import RolloutStore
from router.records import seen
from router.rollout.canary import Judgement, Trial, Verdict, judge
from router.rollout.history import ROUTER, Author
from router.rollout.rollout import Generation, Offer, Rollout

logger = logging.getLogger(__name__)

_SHADOWS: Final = "spec.shadow.spec."  # what it says changes no placement, and is long
INTERVAL_S: Final = 1.0  # between two looks at the file, the store and the canary


class Came(StrEnum):
    """Says what became of an offer."""

    UNCHANGED = "unchanged"
    APPLIED = "applied"
    CANARY = "canary"
    ROLLED_BACK = "rolled back"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    came: Came
    generation: Generation
    warnings: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()  # from what was in force before, field by field


@dataclass(slots=True, eq=False)
class Reloads:
    """Counts documents that were new, wherever they came from."""

    is_last_good: bool = True
    last_good_at_s: float = 0.0  # of the Unix epoch
    error: str = ""
    num_attempts: int = 0
    num_failures: int = 0


class PolicyKeeper:
    def __init__(
        self,
        *,
        placer: Placer,
        store: RolloutStore,
        file: PolicyFile | None,
        default: Offer,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        """`default`: what holds where nobody says anything."""
        self._placer = placer
        self._clock, self._unix_clock = clock, unix_clock
        self._is_asked = asyncio.Event()
        self._default = default
        self._live = LiveRollout(
            Rollout.begin(default, unix_clock()), store, placer.generations, unix_clock
        )
        self.file = file
        self.reloads = Reloads(last_good_at_s=unix_clock())

    @property
    def rollout(self) -> Rollout:
        return self._live.rollout

    @property
    def is_store_away(self) -> bool:
        """Tells whether it is unknown what other routers do with the policy."""
        return self._live.is_store_away

    # -- what operators do -------------------------------------------------------------------

    async def apply(
        self, text: str, source: str, canary_share: float | None = None, author: Author = ROUTER
    ) -> Change:
        """Raises InvalidRequest, and nothing changes; StoreUnavailable, likewise."""
        try:
            offer = await self._offer(text, source, canary_share)
        except ConfigError as error:
            self._note(error)
            raise InvalidRequest("text", error.message) from error
        return await self._take(offer, author)

    async def reload(self, author: Author = ROUTER) -> Change:
        """Reads the file now. Raises InvalidRequest where there is none, or a wrong one."""
        if self.file is None:
            raise InvalidRequest(
                "file", "This router has no policy file: apply a policy, or start it with one."
            )
        try:
            return await self._take(await self._read_file(self.file), author)
        except ConfigError as error:
            self._note(error)
            raise InvalidRequest("file", error.message) from error
        except StoreUnavailable:
            self.file.again()
            raise

    async def roll_back(self, reason: str, author: Author = ROUTER) -> Change:
        """Raises InvalidRequest where there is nothing to return to."""
        try:
            before = self._live.document
            rollout = await self._live.change(
                lambda r: r.rolled_back(self._unix_clock(), reason), author
            )
        except ConfigError as error:
            raise InvalidRequest("policy", error.message) from error
        changes = _told(before, self._live.document)
        return Change(came=Came.ROLLED_BACK, generation=rollout.active, changes=changes)

    def ask_reload(self) -> None:
        """Asks, on a signal, for a reload at the next turn."""
        self._is_asked.set()

    def judgement(self) -> tuple[Trial, Judgement] | None:
        """Judges the canary, if there is one."""
        placer, now = self._placer, self._clock()
        generations = placer.generations
        if generations.canary is None or self.rollout.canary is None:
            return None
        trial = Trial(
            settings=generations.canary_settings,
            canary=seen(generations.canary.on_trial, placer.in_flight, now),
            baseline=seen(generations.active.on_trial, placer.in_flight, now),
            age_s=self._unix_clock() - self.rollout.canary.at_s,
        )
        return trial, judge(trial)

    # -- what happens by itself --------------------------------------------------------------

    async def start(self) -> None:
        """Raises ConfigError where there is no good policy to begin with."""
        is_known = await self._live.find()
        offer = self._default
        if self.file is not None:
            try:
                offer = await self._read_file(self.file)
            except ConfigError as error:
                if not is_known:
                    raise
                self._note(error)
                return
        if not is_known:
            await self._live.begin(Rollout.begin(offer, self._unix_clock()))
        elif self.file is not None and offer.file_digest != self.rollout.file_digest:
            await self._take(offer)  # it was changed while no router looked

    async def run(self) -> Never:
        """Keeps to the file, the store and the guards until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL_S):
                    await self._is_asked.wait()
            try:
                await self.look()
            except PenstockError as error:
                logger.warning("the policy was not looked after: %s", error)
            except Exception:  # the policy in force goes on, whatever its keeper does
                logger.exception("the policy was not looked after")

    async def look(self) -> None:
        """One turn."""
        is_asked = self._is_asked.is_set()
        self._is_asked.clear()
        try:
            await self._live.refresh()
        except ConfigError as error:
            self._note(error)
        await self._judge()
        if is_asked and self.file is not None:
            with contextlib.suppress(InvalidRequest):  # it has been told
                await self.reload()
        elif self.file is not None:
            await self._follow(self.file)

    async def _follow(self, file: PolicyFile) -> None:
        try:
            found = await file.look()
            if found is not None:
                offer = await self._offer(found.text, str(file.path), None, found.digest)
                await self._take(offer)
        except ConfigError as error:
            self._note(error)
        except StoreUnavailable:
            file.again()
            raise

    async def _judge(self) -> None:
        if (found := self.judgement()) is None:
            return
        _, (verdict, why) = found
        number = self.rollout.canary.number if self.rollout.canary else 0

        def settled(rollout: Rollout) -> Rollout:
            if rollout.canary is None or rollout.canary.number != number:
                return rollout  # another router has been faster
            if verdict is Verdict.PROMOTE:
                said = f"The canary {number} took over: {why}."
                return rollout.promoted(self._unix_clock(), said)
            return rollout.withdrawn(f"The canary {number} was rolled back by itself: {why}.")

        if verdict is Verdict.ROLL_BACK:
            await self._live.change_even_alone(settled, ROUTER)
        elif verdict is Verdict.PROMOTE:
            await self._live.change(settled, ROUTER)

    # -- how it changes ----------------------------------------------------------------------

    async def _read_file(self, file: PolicyFile) -> Offer:
        found = await file.read()
        return await self._offer(found.text, str(file.path), None, found.digest)

    async def _offer(
        self, text: str, source: str, canary_share: float | None, file_digest: str = ""
    ) -> Offer:
        document = await asyncio.to_thread(POLICY.parse, text, source)
        return Offer(
            text=text,
            document=document,
            source=source,
            canary_share=canary_share,
            file_digest=file_digest,
        )

    async def _take(self, offer: Offer, author: Author = ROUTER) -> Change:
        before, changes = self.rollout, _told(self._live.document, offer.document)
        warnings = (*risks(offer.document), *_lost_classes(offer.document, self._placer))
        rollout = await self._live.change(lambda r: r.offered(offer, self._unix_clock()), author)
        self.reloads.num_attempts += 1
        self.reloads.is_last_good, self.reloads.error = True, ""
        self.reloads.last_good_at_s = self._unix_clock()
        generation, came = rollout.active, Came.APPLIED
        if rollout.canary is not None and rollout.canary != before.canary:
            generation, came = rollout.canary, Came.CANARY
        elif (rollout.active, rollout.canary) == (before.active, before.canary):
            came = Came.UNCHANGED
        return Change(came=came, generation=generation, warnings=warnings, changes=changes)

    def _note(self, error: ConfigError) -> None:
        logger.error("a policy was refused, and the one before goes on: %s", error)
        self.reloads.num_attempts += 1
        self.reloads.num_failures += 1
        self.reloads.is_last_good, self.reloads.error = False, error.message


def _told(before: PolicyDocument | None, after: PolicyDocument | None) -> tuple[str, ...]:
    if before is None or after is None:
        return ()
    found = differences(effective(before), effective(after))
    return tuple(change_text(each) for each in found if not each["field"].startswith(_SHADOWS))


def _lost_classes(document: PolicyDocument, placer: Placer) -> list[str]:
    """Lists the lost classes of the policy in force: requests that name them will be refused."""
    known = {each.name for each in document.spec.classes}
    lost = [e.name for e in placer.generations.active.policy.classes if e.name not in known]
    return [f"'spec.classes' has no '{name}' any more: its requests are refused." for name in lost]
