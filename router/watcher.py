"""Follows one life of a worker: its cache into the index, its load into the pool.

Reconnects by itself, and asks for what it missed, or for all of it. Knows no membership.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Never

from cluster.codec import load_report_from_pb
from cluster.errors import PenstockError, WorkerLost
from cluster.events import CacheUpdate, EventCursor
from cluster.watch import apply_events, apply_snapshot, watch_request
from router.index import PrefixIndex
from router.links import Link
from router.pool import Pool

logger = logging.getLogger(__name__)

WATCH = ("penstock.v1.Worker", "Watch")
_MIN_BACKOFF_S = 0.05
_MAX_BACKOFF_S = 1.0


class Watcher:
    def __init__(
        self,
        link: Link,
        index: PrefixIndex,
        pool: Pool,
        clock: Callable[[], float],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`changed` is called when the worker has reported, or cannot be reached any more."""
        self._link = link
        self._index = index
        self._pool = pool
        self._clock = clock
        self._changed = changed
        self._cursor = EventCursor()
        self._backoff_s = _MIN_BACKOFF_S
        self.num_gaps = 0
        self.answered = asyncio.Event()  # it has told all that it holds, or cannot be reached

    async def run(self) -> Never:
        """Follows until cancelled."""
        worker = self._link.worker
        while True:
            try:
                await self._follow()
            except PenstockError as error:
                logger.info("watch of %s ended: %s", worker.worker_id, error)
                self._pool.unreachable(worker.worker_id, worker.incarnation, self._clock())
                self._changed()
                self.answered.set()
            except Exception:  # a bug with one worker's events must not end the router
                logger.exception("watch of %s failed", worker.worker_id)
                self.start_anew()
            await asyncio.sleep(self._backoff_s)
            self._backoff_s = min(_MAX_BACKOFF_S, 2 * self._backoff_s)

    async def _follow(self) -> None:
        """One stream. Returns at a gap, for the next stream to begin with a snapshot."""
        async with self._link.channel.stream(*WATCH, self.request(), timeout_s=None) as stream:
            while (response := await stream.receive()) is not None:
                if not self.take(response):
                    self.num_gaps += 1
                    self.start_anew()
                    return
        raise WorkerLost(f"Worker '{self._link.worker.worker_id}' ended its watch.")

    def request(self) -> Any:
        """Says what a stream asks for: all that came after what is known."""
        return watch_request(self._cursor)

    def start_anew(self) -> None:
        """The next stream begins with a snapshot."""
        self._cursor = EventCursor()

    def take(self, response: Any) -> bool:
        """Follows one message. False: something between was missed."""
        match response.WhichOneof("report"):
            case "snapshot":
                self._check_life(response.snapshot.incarnation)
                return self._apply(apply_snapshot(self._cursor, response.snapshot))
            case "events":
                return self._apply(apply_events(self._cursor, response.events))
            case "load":
                return self._report(response.load, response.number)
        return True

    def _apply(self, update: CacheUpdate | None) -> bool:
        if update is None:
            return False
        worker = self._link.worker
        if update.is_reset:
            self._index.replace(worker.worker_id, worker.incarnation, ())
        return all(
            self._index.apply(worker.worker_id, worker.incarnation, change)
            for change in update.changes
        )

    def _report(self, load: Any, number: int) -> bool:
        """Takes in a load: with all events before it the index is fresh. False: some never came."""
        worker, now = self._link.worker, self._clock()
        self._backoff_s = _MIN_BACKOFF_S
        self._pool.report(worker.worker_id, worker.incarnation, load_report_from_pb(load), now)
        self._changed()
        is_fresh = self._cursor.has_all(number)
        if is_fresh:
            self._index.mark_fresh(worker.worker_id, now)
            self.answered.set()
        return is_fresh

    def _check_life(self, incarnation: str) -> None:
        worker = self._link.worker
        if incarnation != worker.incarnation:
            self._index.purge(worker.worker_id, worker.incarnation)
            raise WorkerLost(
                f"Worker '{worker.worker_id}' was restarted, and is yet to register again."
            )
