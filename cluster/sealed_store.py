"""A `Store` whose keeper is not trusted: what it holds counts only if we have written it.

Each value carries a MAC over itself and its key, so that it can be neither made nor moved by who
lacks the cluster's token. A key ends in the mark of that token: clusters with other tokens can
share one Redis, and pass each other over. Who can write there can still delete records, and put
back what was once true under the same key: which of two records is newer is for their readers
to know (`cluster/membership.py`, `router/policy_life/live.py`).
"""

import logging

from cluster.mac import MAC_BYTES, derived_key, is_mac, mac
from cluster.store import Store

logger = logging.getLogger(__name__)

MAX_VALUE_BYTES = 4 << 20  # eight times the longest rollout; far more than any member's record
_MAX_NOTED = 64  # warnings in all: whoever writes there must not fill the log
_RECORD = "record of the store"


class SealedStore:
    """Seals what goes into another store, and shows of it what bears our seal."""

    def __init__(self, store: Store, token: str) -> None:
        self._store = store
        self._key = derived_key(token, "store")
        self._mark = "#" + mac(self._key, "mark")[:4].hex()
        self._noted: set[str] = set()

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None) -> None:
        await self._store.put(key + self._mark, self._sealed(key, value), ttl_s=ttl_s)

    async def get(self, key: str) -> bytes | None:
        return self._unsealed(key, await self._store.get(key + self._mark))

    async def scan(self, prefix: str) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for marked, sealed in (await self._store.scan(prefix)).items():
            key = marked.removesuffix(self._mark)
            if key == marked:
                self._note_foreign(marked)
            elif (value := self._unsealed(key, sealed)) is not None:
                found[key] = value
        return found

    async def compare_and_set(
        self, key: str, expected: bytes | None, value: bytes | None, *, ttl_s: float | None = None
    ) -> bool:
        there = None if expected is None else self._sealed(key, expected)
        fresh = None if value is None else self._sealed(key, value)
        if await self._store.compare_and_set(key + self._mark, there, fresh, ttl_s=ttl_s):
            return True
        if expected is not None:
            return False
        # What is not ours is as good as absent: else a stranger's bytes would hold the key.
        there = await self._store.get(key + self._mark)
        if there is None or self._unsealed(key, there) is not None:
            return False
        return await self._store.compare_and_set(key + self._mark, there, fresh, ttl_s=ttl_s)

    async def take(
        self, key: str, amount: int, *, most: int | None = None, window_s: float = 60.0
    ) -> float:
        """Counts, unsealed: who writes there may change a count, which refuses or lets in."""
        return await self._store.take(key + self._mark, amount, most=most, window_s=window_s)

    async def close(self) -> None:
        await self._store.close()

    def _sealed(self, key: str, value: bytes) -> bytes:
        return mac(self._key, _RECORD, key.encode(), value) + value

    def _unsealed(self, key: str, sealed: bytes | None) -> bytes | None:
        """None where there is nothing, or nothing of ours."""
        if sealed is None:
            return None
        seal, value = sealed[:MAC_BYTES], sealed[MAC_BYTES:]
        if len(sealed) <= MAX_VALUE_BYTES and is_mac(seal, self._key, _RECORD, key.encode(), value):
            return value
        self._note(
            key, "the record %r in the store was not made by this cluster, or not there", key
        )
        return None

    def _note_foreign(self, marked: str) -> None:
        sentence = (
            "records in the store without this cluster's mark, as %r: two clusters share it, or a "
            "process has another secrets file"
        )
        self._note(marked.rpartition("#")[2], sentence, marked)

    def _note(self, cause: str, sentence: str, key: str) -> None:
        """Once: a store is read twice a second."""
        if cause not in self._noted and len(self._noted) < _MAX_NOTED:
            self._noted.add(cause)
            logger.warning("passed over: " + sentence, key[:200])
