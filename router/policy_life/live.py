"""The rollout that is in force here, and its copy in the store. What changes is first in the store
and then in force, so that all routers agree. A store that says what is past, for it was made to or
has lost its last seconds, is told again.

Documents are read in a thread: a long one takes longer than a request may wait.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from cluster.errors import ConfigError, StoreUnavailable
from router.policy_file.document import PolicyDocument
from router.policy_file.kind import POLICY
from router.policy_life.store import RolloutStore
from router.rollout.generations import Generations, LoadedRollout
from router.rollout.history import ROUTER, Author
from router.rollout.rollout import Generation, Rollout, decode_rollout, encode_rollout

logger = logging.getLogger(__name__)

_MAX_ATTEMPTS: Final = 5


class LiveRollout:
    def __init__(
        self,
        rollout: Rollout,
        store: RolloutStore,
        generations: Generations,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        """`rollout` is not in force before `find` or `begin`."""
        self._unix_clock = unix_clock
        self.rollout = rollout
        self.document: PolicyDocument | None = None  # in force
        self._store = store
        self._generations = generations
        self._changing = asyncio.Lock()
        self._stored: bytes | None = None  # as last seen, good or not
        self._revision = 0  # the greatest that was seen there
        self.is_store_away = False
        self._is_ahead = False  # of the store, which was away
        self._documents: dict[str, PolicyDocument] = {}  # by text, of what is in force

    async def find(self) -> bool:
        """Takes over what the store says. False: it says nothing that could be in force."""
        try:
            async with self._changing:
                return await self._see(await self._store.load())
        except StoreUnavailable as error:
            self._away(error)
        except ConfigError as error:
            logger.error("what is stored cannot be in force: %s", error)
        return False

    async def begin(self, rollout: Rollout) -> None:
        """Puts the first one in force; that of another router, if that has been faster. What is
        stored and not understood is not overwritten: a newer router's, perhaps."""
        first = self.rollout
        if self._stored is not None:
            self._adopt(await self._load(rollout))
            return
        try:
            await self.change(lambda now: rollout if now is first else now, ROUTER)
        except StoreUnavailable as error:
            await self._go_alone(rollout, error)

    async def change(self, change: Callable[[Rollout], Rollout], author: Author) -> Rollout:
        """Into the store, then in force; no more where `change` returns what it was given. It may
        be asked several times. Raises StoreUnavailable or what it raises: then nothing changes."""
        async with self._changing:
            for _ in range(_MAX_ATTEMPTS):
                rollout = self._changed(change, author)
                if rollout is self.rollout:
                    return rollout
                loaded, data = await self._load(rollout), encode_rollout(rollout)
                if await self._store.swap(self._stored, data):
                    self._stored = data
                    self._adopt(loaded)
                    self._revision = rollout.revision
                    return rollout
                await self._look()
        raise StoreUnavailable(
            f"The policy changed {_MAX_ATTEMPTS} times while it was to be changed: nothing was."
        )

    async def change_even_alone(self, change: Callable[[Rollout], Rollout], author: Author) -> None:
        """The same, but what cannot wait for the store is in force here before it is there."""
        try:
            await self.change(change, author)
        except StoreUnavailable as error:
            await self._go_alone(self._changed(change, author), error)

    async def refresh(self) -> None:
        """Takes over what other routers have done. Raises ConfigError, once, for what cannot be in
        force."""
        try:
            async with self._changing:
                await self._look()
        except StoreUnavailable as error:
            self._away(error)
        else:
            self.is_store_away = False

    def _changed(self, change: Callable[[Rollout], Rollout], author: Author) -> Rollout:
        before = self.rollout
        rollout = change(before)
        if rollout is before:
            return rollout
        recorded = rollout.recorded(before, author, self._unix_clock())
        return replace(recorded, revision=max(self._revision, before.revision) + 1)

    async def _look(self) -> None:
        data = await self._store.load()
        if self._is_behind(data):
            data = await self._put_own(data)
        self._is_ahead = False
        await self._see(data)

    def _is_behind(self, data: bytes | None) -> bool:
        """Tells whether the store has lost its memory, does not know yet what happened while it was
        away, or says what is past."""
        if data is None or data == self._stored:
            return data is None or self._is_ahead
        with contextlib.suppress(ConfigError):  # told by whoever takes it over
            return decode_rollout(data, self._store.source).revision < self._revision
        return False

    async def _put_own(self, expected: bytes | None) -> bytes | None:
        """Stores our own; gives what is stored afterwards."""
        own = encode_rollout(self.rollout)
        if not await self._store.swap(expected, own):
            return await self._store.load()
        self._stored = own
        return own

    async def _go_alone(self, rollout: Rollout, error: StoreUnavailable) -> None:
        self._away(error)
        self._adopt(await self._load(rollout))
        self._is_ahead = True

    async def _see(self, data: bytes | None) -> bool:
        """Takes in what is stored; tells whether there is something."""
        if data is None or data == self._stored:
            return data is not None
        self._stored = data
        rollout = decode_rollout(data, self._store.source)
        self._adopt(await self._load(rollout))
        self._revision = rollout.revision
        return True

    async def _load(self, rollout: Rollout) -> LoadedRollout:
        """Reads the documents that are not known yet. Raises ConfigError."""
        active = await self._document(rollout.active)
        canary = await self._document(rollout.canary) if rollout.canary else None
        return LoadedRollout(rollout, active, canary)

    async def _document(self, generation: Generation) -> PolicyDocument:
        if (known := self._documents.get(generation.text)) is not None:
            return known
        return await asyncio.to_thread(POLICY.parse, generation.text, generation.source)

    def _adopt(self, loaded: LoadedRollout) -> None:
        rollout, before = loaded.rollout, self.rollout
        self._documents = {rollout.active.text: loaded.active}
        if rollout.canary is not None and loaded.canary is not None:
            self._documents[rollout.canary.text] = loaded.canary
        self._generations.adopt(loaded)
        self.rollout, self.document = rollout, loaded.active
        if (rollout.active, rollout.canary) != (before.active, before.canary):
            active = rollout.active
            said = (active.name, active.number, active.digest, rollout.why)
            author = rollout.history[-1].author if rollout.history else ROUTER
            fields = {
                "audit": "policy",
                "by": author.name,
                "from": author.address or "here",
                "policy": active.name,
                "policy_generation": active.number,
                "canary_generation": rollout.canary.number if rollout.canary else None,
            }
            logger.info(
                "policy '%s' (generation %d, %s) is in force. %s", *said, extra={"fields": fields}
            )

    def _away(self, error: StoreUnavailable) -> None:
        if not self.is_store_away:
            logger.warning("what other routers do with the policy is not known: %s", error)
        self.is_store_away = True
