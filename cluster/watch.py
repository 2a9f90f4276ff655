"""`Worker.Watch` on the wire, both ends: snapshot or replay, then changes and load reports.

The ring of the log is the queue of every watcher: a slow one holds no memory of its own, and
gets a snapshot when the ring has passed it by.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Never

from cluster.block_hash import HASH_BYTES
from cluster.codec import (
    cache_change_from_pb,
    cache_change_to_pb,
    hashes_from_bytes,
    hashes_to_bytes,
    load_report_to_pb,
)
from cluster.events import CacheUpdate, EventCursor, EventLog, Snapshot
from cluster.types import CacheChange, Incarnation, LoadReport
from penstock.v1 import worker_pb2

REPORT_INTERVAL_S = 0.25
CALM = 2  # times as long a report is put off that would say the same: it costs a router a wake-up
PAIRS_EVERY = 4  # intervals: pairs and links are many, and change slowly
# A part holds the router's event loop for a few milliseconds while it is applied.
MAX_PART_BYTES = 1 << 17
UNKNOWN = -1  # no change has this number: a snapshot is due
_MAX_CHANGES = 1_024  # of a message
_MAX_ADMITTED = 1_024  # remembered for a router that comes back

Send = Callable[[Any], Awaitable[None]]


class WatchFeed:
    """Tells whoever watches a worker. One feed a worker, any number of watchers."""

    def __init__(
        self,
        log: EventLog,
        load: Callable[[], LoadReport],
        *,
        report_interval_s: float = REPORT_INTERVAL_S,
    ) -> None:
        self._log = log
        self._load = load  # called for each watcher; the feed adds `request_ids`
        self._interval_s = report_interval_s
        self._admitted: deque[str] = deque(maxlen=_MAX_ADMITTED)
        self._num_admitted = 0
        self._num_demands = 0
        self._wakers: set[Callable[[], None]] = set()

    def admitted(self, request_id: str) -> None:
        """This request now counts in the load: the next report says so to each router."""
        self._admitted.append(request_id)
        self._num_admitted += 1

    def report_now(self) -> None:
        """Sends a load report to each watcher without waiting for its time."""
        self._num_demands += 1
        for wake in self._wakers:
            wake()

    async def watch(self, request: worker_pb2.WatchRequest, send: Send) -> Never:
        """Sends snapshot or replay, then changes and load reports, until cancelled."""
        woken = asyncio.Event()
        self._log.subscribe(woken.set)
        self._wakers.add(woken.set)
        try:
            watcher = _Watcher(self._num_admitted - len(self._admitted))
            if request.incarnation == self._log.incarnation:
                watcher.number = request.after_number
            while True:
                woken.clear()
                await self._send_changes(watcher, send)
                await self._send_load(watcher, send)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(watcher.next_look):
                        await woken.wait()
        finally:
            self._log.unsubscribe(woken.set)
            self._wakers.discard(woken.set)

    async def _send_changes(self, watcher: "_Watcher", send: Send) -> None:
        while watcher.number != self._log.number:
            messages, watcher.number = catch_up(self._log, watcher.number)
            for message in messages:
                await send(message)

    async def _send_load(self, watcher: "_Watcher", send: Send) -> None:
        now = asyncio.get_running_loop().time()
        is_demanded = watcher.num_demands != self._num_demands
        if now < watcher.next_look and not is_demanded:
            return
        watcher.next_look = now + self._interval_s
        watcher.num_demands = self._num_demands
        num_new = min(len(self._admitted), self._num_admitted - watcher.num_admitted)
        watcher.num_admitted = self._num_admitted
        request_ids = tuple(islice(self._admitted, len(self._admitted) - num_new, None))
        whole = replace(self._load(), request_ids=request_ids)
        report = replace(whole, pairs=None, links=None)
        says_more = is_demanded or num_new > 0 or report != watcher.report
        if not says_more and now < watcher.next_report:
            return
        watcher.report, watcher.next_report = report, now + CALM * self._interval_s
        if now >= watcher.next_pairs:
            report, watcher.next_pairs = whole, now + PAIRS_EVERY * self._interval_s
        # Only with its number a router knows that nothing is missing.
        await send(worker_pb2.WatchResponse(load=load_report_to_pb(report), number=watcher.number))


@dataclass(slots=True, eq=False)
class _Watcher:
    """Marks how far one watcher has been told."""

    num_admitted: int
    number: int = UNKNOWN  # of the last change sent
    num_demands: int = 0
    report: LoadReport | None = None  # the last that was sent, without pairs and links
    next_look: float = 0.0  # loop time
    next_report: float = 0.0  # though it would say the same
    next_pairs: float = 0.0


def catch_up(
    log: EventLog, after: int, *, part_bytes: int = MAX_PART_BYTES
) -> tuple[Iterator[worker_pb2.WatchResponse], int]:
    """Gives what a watcher that was told of all changes up to `after` is told next, and up to which
    change that is: changes if they are kept, else a snapshot as of now."""
    changes = log.replay(after, limit=_MAX_CHANGES)
    if changes is None:
        snapshot = log.snapshot()
        return _snapshot_messages(log.incarnation, snapshot, part_bytes), snapshot.number
    message = _events_message(after + 1, changes, part_bytes)
    return iter((message,)), after + len(message.events.events)


def _snapshot_messages(
    incarnation: Incarnation, snapshot: Snapshot, part_bytes: int
) -> Iterator[worker_pb2.WatchResponse]:
    """Packed part by part, as they are sent: a worker does other things besides."""
    number, grains = snapshot
    num_part = part_bytes // HASH_BYTES
    for start in range(0, max(1, len(grains)), num_part):
        stop = start + num_part
        part = worker_pb2.CacheSnapshot(
            incarnation=incarnation,
            number=number,
            hashes=hashes_to_bytes(grains[start:stop]),
            offset=start,
            last=stop >= len(grains),
        )
        yield worker_pb2.WatchResponse(snapshot=part)


def _events_message(
    first_number: int, changes: list[CacheChange], part_bytes: int
) -> worker_pb2.WatchResponse:
    """Packs as many of the changes as a message holds; one at least."""
    message = worker_pb2.WatchResponse()
    message.events.first_number = first_number
    num_bytes = 0
    for change in changes:
        num_bytes += HASH_BYTES * (len(change.stored) + len(change.evicted))
        if num_bytes > part_bytes and message.events.events:
            break
        message.events.events.append(cache_change_to_pb(change))
    return message


def watch_request(cursor: EventCursor) -> worker_pb2.WatchRequest:
    """Says what to ask a worker for, given how far it has been followed."""
    return worker_pb2.WatchRequest(incarnation=cursor.incarnation, after_number=cursor.number)


def apply_snapshot(cursor: EventCursor, part: worker_pb2.CacheSnapshot) -> CacheUpdate | None:
    return cursor.snapshot_part(
        part.incarnation,
        part.number,
        hashes_from_bytes("hashes", part.hashes),
        offset=part.offset,
        is_last=part.last,
    )


def apply_events(cursor: EventCursor, events: worker_pb2.CacheEvents) -> CacheUpdate | None:
    changes = [cache_change_from_pb(event) for event in events.events]
    return cursor.events(events.first_number, changes)
