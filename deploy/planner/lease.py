"""One entry of a store that one process holds at a time, for as long as it renews it.

Who holds it may lose it without a word: the store is away, or somebody deleted the entry. So what
it does is asked for anew each time, and believed for no longer than the entry lives.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Never

from cluster.errors import StoreUnavailable
from cluster.store import Store

logger = logging.getLogger(__name__)

TTL_S: Final = 10.0
_NUM_TRIES: Final = 3  # to renew it, while it lives


class Lease:
    """Holds one key of the store for one holder."""

    def __init__(
        self,
        store: Store,
        key: str,
        name: str,
        *,
        ttl_s: float = TTL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`name`: the holder's, for people."""
        self._store = store
        self._key = key
        self._value = f"{name} {secrets.token_hex(8)}".encode()  # of this life of it
        self._ttl_s = ttl_s
        self._clock = clock
        self._held_until = clock()
        self.holder = ""  # who has it, as last seen; empty: nobody, or it is not known

    @property
    def is_held(self) -> bool:
        """Tells whether nobody else can have it now."""
        return self._clock() < self._held_until

    async def take(self) -> bool:
        """Takes it, or renews it; whether it is held now. A store that is away leaves it as it
        was: it lapses."""
        asked_at = self._clock()  # the entry lives from then on, or longer
        try:
            is_mine = await self._store.compare_and_set(
                self._key, self._value, self._value, ttl_s=self._ttl_s
            ) or await self._store.compare_and_set(self._key, None, self._value, ttl_s=self._ttl_s)
            current = self._value if is_mine else await self._store.get(self._key)
        except StoreUnavailable as error:
            logger.debug("the lease is not renewed: %s", error)
            return self.is_held
        self._held_until = asked_at + self._ttl_s if is_mine else asked_at
        self.holder = (current or b"").decode(errors="replace").rpartition(" ")[0]
        return self.is_held

    async def give_back(self) -> None:
        """The next one need not wait until it lapses."""
        self._held_until = self._clock()
        with contextlib.suppress(StoreUnavailable):
            await self._store.compare_and_set(self._key, self._value, None)

    async def keep(self) -> Never:
        """Takes it, and renews it, until cancelled."""
        while True:
            was_held = self.is_held
            if await self.take() != was_held:
                logger.info("the lease is %s", "lost" if was_held else "held")
            await asyncio.sleep(self._ttl_s / _NUM_TRIES)

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Tries at once, and goes on until the block ends."""
        await self.take()
        keeping = asyncio.create_task(self.keep())
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await self.give_back()
