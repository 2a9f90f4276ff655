"""Keeps what is in force in the store that all routers share, or in a file of one's own. Bytes in,
bytes out, and nothing is overwritten unseen.
"""

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Final, Protocol

from cluster.errors import StoreUnavailable
from cluster.store import Store
from router.rollout.rollout import MAX_ROLLOUT_BYTES

_KEY: Final = "policy/rollout"


class RolloutStore(Protocol):
    """Both raise StoreUnavailable."""

    source: str  # for people

    async def load(self) -> bytes | None: ...

    async def swap(self, expected: bytes | None, value: bytes) -> bool:
        """False, and nothing changes, where something else than expected is found."""
        ...


class SharedRollouts:
    def __init__(self, store: Store) -> None:
        self._store = store
        self.source = "the policy in the store"

    async def load(self) -> bytes | None:
        return await self._store.get(_KEY)

    async def swap(self, expected: bytes | None, value: bytes) -> bool:
        return await self._store.compare_and_set(_KEY, expected, value)


class FileRollouts:
    """Serves the only router of a cluster: what it was told survives its process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.source = f"'{path}'"

    async def load(self) -> bytes | None:
        return await asyncio.to_thread(self._load)

    async def swap(self, expected: bytes | None, value: bytes) -> bool:
        return await asyncio.to_thread(self._swap, expected, value)

    def _load(self) -> bytes | None:
        try:
            with self._path.open("rb") as file:
                return file.read(MAX_ROLLOUT_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreUnavailable(f"{self.source} cannot be read: {error.strerror}.") from error

    def _swap(self, expected: bytes | None, value: bytes) -> bool:
        if self._load() != expected:
            return False
        fresh = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            with contextlib.suppress(FileNotFoundError):
                fresh.unlink()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with os.fdopen(os.open(fresh, flags, 0o600), "wb") as file:
                file.write(value)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
        except OSError as error:
            raise StoreUnavailable(f"{self.source} cannot be written: {error.strerror}.") from error
        return True
