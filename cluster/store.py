"""Keeps what is small, slow and shared: membership, policy, quotas. Bytes under string keys.

The contract, and the twin that lives in one process. Values are the caller's; nothing here
knows what they mean. `cluster/redis_store.py` is the same across machines.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from cluster.windows import Taken


class Store(Protocol):
    """Every verb ends within a bound of seconds, or raises `StoreUnavailable`."""

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None) -> None:
        """Sets a value. With `ttl_s` it is gone after as many seconds unless put again."""
        ...

    async def get(self, key: str) -> bytes | None: ...

    async def scan(self, prefix: str) -> dict[str, bytes]:
        """Everything under a prefix. Not one moment's view: keys may come and go meanwhile."""
        ...

    async def compare_and_set(
        self, key: str, expected: bytes | None, value: bytes | None, *, ttl_s: float | None = None
    ) -> bool:
        """Sets `value` if the current one is `expected`; None is absence on either side."""
        ...

    async def take(
        self, key: str, amount: int, *, most: int | None = None, window_s: float = 60.0
    ) -> float:
        """Counts `amount` under a key for as long as the window, which slides; returns 0.0. Where
        more than `most` would be counted then, nothing is, and it returns the seconds until so much
        will fit. Without `most` it is counted whatever there is. Keys of counts are a space of
        their own."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    value: bytes
    expires: float | None


class _Window(NamedTuple):
    number: int  # since the clock's zero
    before: int
    now: int


class MemoryStore:
    """A `Store` in this process."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._counts: dict[str, _Window] = {}

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None) -> None:
        self._put(key, value, ttl_s)

    async def get(self, key: str) -> bytes | None:
        return self._get(key)

    async def scan(self, prefix: str) -> dict[str, bytes]:
        keys = [key for key in self._entries if key.startswith(prefix)]
        return {key: value for key in keys if (value := self._get(key)) is not None}

    async def compare_and_set(
        self, key: str, expected: bytes | None, value: bytes | None, *, ttl_s: float | None = None
    ) -> bool:
        if self._get(key) != expected:
            return False
        if value is None:
            self._entries.pop(key, None)
        else:
            self._put(key, value, ttl_s)
        return True

    async def take(
        self, key: str, amount: int, *, most: int | None = None, window_s: float = 60.0
    ) -> float:
        number, elapsed_s = divmod(self._clock(), window_s)
        window = self._counts.get(key) or _Window(int(number), 0, 0)
        if (age := int(number) - window.number) > 0:
            window = _Window(int(number), window.now if age == 1 else 0, 0)
        taken = Taken(window.before, window.now, elapsed_s)
        wait_s = 0.0 if most is None else taken.wait_s(amount, most, window_s)
        if not wait_s:
            self._counts[key] = window._replace(now=window.now + amount)
        return wait_s

    async def close(self) -> None:
        self._entries.clear()
        self._counts.clear()

    def _put(self, key: str, value: bytes, ttl_s: float | None) -> None:
        expires = None if ttl_s is None else self._clock() + ttl_s
        self._entries[key] = _Entry(value=value, expires=expires)

    def _get(self, key: str) -> bytes | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.expires is not None and self._clock() >= entry.expires:
            del self._entries[key]
            return None
        return entry.value


def prefix_of(cluster: str | None) -> str:
    """Gives the prefix of all keys of a cluster, by its name if it has one."""
    return f"penstock:{cluster}:" if cluster else "penstock:"
