"""Notes which lives of workers were told to drain just now, by any router of the same store: so
long their reports may not have come everywhere, and each router would count them as serving.

A note lapses by itself: a router that has no report by then counts nobody who is silent.
"""

import json
import logging
import time
from collections.abc import Callable
from typing import Final

from cluster.errors import StoreUnavailable
from cluster.store import MemoryStore, Store
from cluster.types import Incarnation

logger = logging.getLogger(__name__)

Told = frozenset[Incarnation]

_KEY: Final = "drains"
_TTL_S: Final = 10.0  # a worker that says nothing is passed over after a second
_MAX_NOTED: Final = 256
_MAX_ATTEMPTS: Final = 16  # each that fails is another drain that was noted


class DrainNotes:
    def __init__(self, store: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: of what is kept here while the store is away."""
        self._store = store
        self._own = MemoryStore(clock=clock)

    async def add(self, life: Incarnation, check: Callable[[Told], None]) -> None:
        """Notes that it is told to drain, unless `check`, given all that are noted, raises. It may
        be asked several times, and what it was told last holds when this is noted. While the store
        is away each router knows of its own notes alone."""
        try:
            await _add(self._store, life, check)
        except StoreUnavailable as error:
            logger.warning("what other routers tell to drain is not known: %s", error)
            await _add(self._own, life, check)

    async def remove(self, life: Incarnation) -> None:
        """It serves on."""
        for store in (self._own, self._store):
            try:
                await _remove(store, life)
            except StoreUnavailable as error:
                logger.debug("a note of a drain stays until it lapses: %s", error)


async def _add(store: Store, life: Incarnation, check: Callable[[Told], None]) -> None:
    for _ in range(_MAX_ATTEMPTS):
        data = await store.get(_KEY)
        noted = _decoded(data)
        check(frozenset(noted))
        later = [*(each for each in noted if each != life), life][-_MAX_NOTED:]
        if await store.compare_and_set(_KEY, data, _encoded(later), ttl_s=_TTL_S):
            return
    raise StoreUnavailable(f"Others were told to drain {_MAX_ATTEMPTS} times meanwhile.")


async def _remove(store: Store, life: Incarnation) -> None:
    for _ in range(_MAX_ATTEMPTS):
        data = await store.get(_KEY)
        noted = _decoded(data)
        if life not in noted:
            return
        rest = _encoded([each for each in noted if each != life])
        if await store.compare_and_set(_KEY, data, rest, ttl_s=_TTL_S):
            return


def _encoded(noted: list[Incarnation]) -> bytes:
    return json.dumps(noted).encode()


def _decoded(data: bytes | None) -> list[Incarnation]:
    """Reads notes; what another release may have written otherwise is none."""
    try:
        found = json.loads(data or b"[]")
    except (ValueError, RecursionError):
        return []
    if not isinstance(found, list):
        return []
    return [Incarnation(each) for each in found[:_MAX_NOTED] if isinstance(each, str)]
