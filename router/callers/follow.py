"""Keeps the keys in force true to their file, however it is replaced, and writes into the log who
came and went. A file that is wrong changes nothing: the last good one goes on.
"""

import asyncio
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Never

from cluster.errors import ConfigError
from router.callers.callers import Callers
from router.callers.key_file import ApiKey, KeyTable, read_keys
from router.settling import Settling

logger = logging.getLogger(__name__)

# Between two looks. What two find the same is not being written any more: so a change counts
# within a second, and whoever was revoked is out.
INTERVAL_S: Final = 0.4

_Seen = tuple[int, ...]


class KeyFileFollower:
    def __init__(self, path: Path, callers: Callers) -> None:
        """Raises ConfigError: a router does not start on keys that it cannot read."""
        self._path = path
        self._callers = callers
        self._settling = Settling(_seen(path))
        callers.put_in_force(read_keys(path))
        logger.info("keys loaded: %s", _number(callers.table), extra={"fields": {"file": path}})

    async def run(self) -> Never:
        """Follows the file until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            try:
                await self.look()
            except Exception:  # the keys in force go on, whatever becomes of their file
                logger.exception("the file of API keys was not looked after")

    async def look(self) -> None:
        """One look."""
        if not self._settling.is_news(await asyncio.to_thread(_seen, self._path)):
            return
        try:
            table = await asyncio.to_thread(read_keys, self._path)
        except ConfigError as error:
            self._callers.error = error.message
            logger.warning("the keys in force stay, for their file cannot be used: %s", error)
            return
        self._put_in_force(table)

    def _put_in_force(self, table: KeyTable) -> None:
        before, self._callers.error = self._callers.table or KeyTable(), ""
        self._callers.put_in_force(table)
        for what, key in _changes(before, table):
            fields = {"tenant": key.tenant, "key": key.id, "audit": "callers"}
            logger.info("caller %s", what, extra={"fields": fields})
        logger.info("keys reloaded: %s", _number(table), extra={"fields": {"file": self._path}})


def _changes(before: KeyTable, after: KeyTable) -> Iterator[tuple[str, ApiKey]]:
    """What is to be known of each key that is not as it was."""
    old, new = ({key.id: key for key in table.keys} for table in (before, after))
    for key_id, key in old.items():
        if key_id not in new:
            yield "revoked", key
    for key_id, key in new.items():
        if key_id not in old:
            yield "added", key
        elif key != old[key_id]:
            yield "changed", key


def _seen(path: Path) -> _Seen:
    """What tells one state of a file from another; empty: there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode


def _number(table: KeyTable | None) -> str:
    num = len(table.keys) if table else 0
    return f"{num} keys" if num != 1 else "1 key"
