"""What each key may take in a minute, and at once. Counts of a minute are in the store: routers
that share a Redis share them. What is in flight is counted by each router for itself.

Who counts is in nobody's way: while the store is away everybody is let in, and that is counted.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Never

from cluster.errors import InvalidRequest, QuotaExceeded, StoreUnavailable
from cluster.store import Store
from router.caller import Caller
from router.callers.key_file import ApiKey

logger = logging.getLogger(__name__)

_MINUTE_S: Final = 60.0
_REST_S: Final = 1.0  # a store that did not answer is not asked for so long
_REQUESTS, _TOKENS = "requests", "tokens"


class Quotas:
    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._num_in_flight: dict[str, int] = {}
        self._owed: dict[str, int] = {}  # tokens of answers that are not counted yet
        self._is_owed = asyncio.Event()
        self._asked_again_at = 0.0
        self._is_away = False
        self.num_unchecked = 0  # times that nothing was counted, for the store was away

    @contextmanager
    def in_flight(self, key: ApiKey, caller: Caller) -> Iterator[None]:
        """Has a request in flight as long as the scope lasts; then its tokens count. Raises
        QuotaExceeded."""
        num = self._num_in_flight.get(key.id, 0)
        if key.max_in_flight is not None and num >= key.max_in_flight:
            raise QuotaExceeded(
                f"This API key may have {key.max_in_flight} requests in flight, and has: wait for"
                " one of them."
            )
        self._num_in_flight[key.id] = num + 1
        try:
            yield
        finally:
            self._num_in_flight[key.id] -= 1
            if not self._num_in_flight[key.id]:
                del self._num_in_flight[key.id]
            if key.max_tokens_per_minute is not None and caller.tokens_emitted:
                self._owed[key.id] = self._owed.get(key.id, 0) + caller.tokens_emitted
                self._is_owed.set()

    async def take_request(self, key: ApiKey) -> None:
        """Raises QuotaExceeded."""
        if key.max_requests_per_minute is not None:
            await self._take(key, _REQUESTS, 1, key.max_requests_per_minute)

    async def take_prompt(self, key: ApiKey, num_tokens: int) -> None:
        """Raises QuotaExceeded; InvalidRequest for what could never be let in."""
        most = key.max_tokens_per_minute
        if most is None:
            return
        if num_tokens > most:
            raise InvalidRequest(
                "prompt",
                f"The prompt has {num_tokens} tokens, and this API key may have {most} in a minute:"
                " send less.",
            )
        await self._take(key, _TOKENS, num_tokens, most)

    async def run(self) -> Never:
        """Counts what answers had until cancelled."""
        while True:
            await self._is_owed.wait()
            try:
                await self.settle()
            except Exception:  # requests go on, whoever counts
                logger.exception("tokens of answers were not counted")

    async def settle(self) -> None:
        """Counts it now."""
        self._is_owed.clear()
        owed, self._owed = self._owed, {}
        for key_id, num_tokens in owed.items():
            await self._counted(f"{key_id}/{_TOKENS}", num_tokens, None)

    async def _take(self, key: ApiKey, what: str, amount: int, most: int) -> None:
        wait_s = await self._counted(f"{key.id}/{what}", amount, most)
        if wait_s:
            raise QuotaExceeded(
                f"This API key may have {most} {what} in a minute, and would have more with this:"
                f" come again in {max(wait_s, 1):.0f} s.",
                retry_after_s=wait_s,
            )

    async def _counted(self, name: str, amount: int, most: int | None) -> float:
        """Seconds until there is room; 0.0: it was counted, or nobody could."""
        now = self._clock()
        if now >= self._asked_again_at:
            try:
                wait_s = await self._store.take(name, amount, most=most, window_s=_MINUTE_S)
                self._is_away = False
                return wait_s
            except StoreUnavailable as error:
                self._asked_again_at = self._clock() + _REST_S
                if not self._is_away:
                    logger.warning("quotas are not kept, all callers are let in: %s", error)
                self._is_away = True
        self.num_unchecked += 1
        return 0.0
