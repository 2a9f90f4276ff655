"""A worker's cache as others follow it: numbered changes, a snapshot, and the watcher's cursor.

The log is the truth about which grains a worker holds. It keeps the latest changes in a ring;
whoever falls further behind gets a snapshot. `EventCursor` is the other end, for routers and
tests. Both are synchronous and pure; `cluster/watch.py` puts them on the wire.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cluster.block_hash import HASH_BYTES
from cluster.types import CacheChange, GrainHash, Incarnation

DEFAULT_CAPACITY = 65_536


class Snapshot(NamedTuple):
    """All grains held after change `number`."""

    number: int
    grains: tuple[GrainHash, ...]


class EventLog:
    """The changes of one worker's cache, numbered from 1."""

    def __init__(
        self,
        incarnation: Incarnation,
        *,
        capacity: int = DEFAULT_CAPACITY,
        max_grains: int = 16 * DEFAULT_CAPACITY,
    ) -> None:
        self.incarnation = incarnation
        self.number = 0  # of the last change
        self._ring: deque[CacheChange] = deque()
        self._capacity = capacity
        self._max_ring_grains = max_grains
        self._num_ring_grains = 0
        self._grains: set[GrainHash] = set()
        self._wakers: set[Callable[[], None]] = set()

    @property
    def num_grains(self) -> int:
        return len(self._grains)

    def append(self, change: CacheChange) -> None:
        """Numbers a change and wakes who follows. An empty one is none."""
        if not (change.stored or change.evicted):
            return
        self._grains.difference_update(change.evicted)
        self._grains.update(change.stored)
        self.number += 1
        self._ring.append(change)
        self._num_ring_grains += _num_grains(change)
        while len(self._ring) > self._capacity or self._num_ring_grains > self._max_ring_grains:
            self._num_ring_grains -= _num_grains(self._ring.popleft())
        for wake in self._wakers:
            wake()

    def replay(self, after: int, *, limit: int = DEFAULT_CAPACITY) -> list[CacheChange] | None:
        """The changes after number `after`, `limit` at most; None if they are not all kept."""
        num_missed = self.number - after
        if not 0 <= num_missed <= len(self._ring):
            return None
        first = len(self._ring) - num_missed
        stop = min(first + limit, len(self._ring))
        return [self._ring[position] for position in range(first, stop)]

    def snapshot(self) -> Snapshot:
        return Snapshot(self.number, tuple(self._grains))

    def subscribe(self, wake: Callable[[], None]) -> None:
        """Calls `wake` after each change, until `unsubscribe`."""
        self._wakers.add(wake)

    def unsubscribe(self, wake: Callable[[], None]) -> None:
        self._wakers.discard(wake)

    def check(self) -> None:
        """The accounts of the ring and of the set agree with what they count."""
        assert len(self._ring) <= min(self._capacity, self.number)
        assert self._num_ring_grains == sum(_num_grains(change) for change in self._ring)
        assert all(len(grain) == HASH_BYTES for grain in self._grains)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheUpdate:
    """Says what a message changed in the view of a worker's cache."""

    is_reset: bool = False  # forget all grains of this worker first
    changes: tuple[CacheChange, ...] = ()


class EventCursor:
    """Knows how far a watcher has followed a worker. A gap is answered with None: watch again."""

    def __init__(self) -> None:
        self.incarnation = ""  # empty: unknown, a snapshot comes first
        self.number = 0
        self._snapshot = ("", 0)  # incarnation and number of the one under way
        self._num_received = 0  # grains of it

    def snapshot_part(
        self,
        incarnation: str,
        number: int,
        hashes: Sequence[GrainHash],
        *,
        offset: int,
        is_last: bool,
    ) -> CacheUpdate | None:
        """`offset` is the number of grains in the parts before this one."""
        if offset == 0:
            self.incarnation = ""  # until the last part is there, nothing can be replayed
            self._snapshot, self._num_received = (incarnation, number), 0
        elif (incarnation, number) != self._snapshot or offset > self._num_received:
            return None
        elif offset < self._num_received:
            return CacheUpdate()  # seen already
        self._num_received += len(hashes)
        if is_last:
            self.incarnation, self.number = incarnation, number
        changes = (CacheChange(stored=tuple(hashes)),) if hashes else ()
        return CacheUpdate(is_reset=offset == 0, changes=changes)

    def events(self, first_number: int, changes: Sequence[CacheChange]) -> CacheUpdate | None:
        """Gives what is new of these changes: those seen already are left out."""
        num_seen = self.number + 1 - first_number
        if not self.incarnation or num_seen < 0:
            return None
        fresh = tuple(changes[num_seen:])
        self.number += len(fresh)
        return CacheUpdate(changes=fresh)

    def has_all(self, number: int) -> bool:
        """Tells whether everything up to this change has been followed."""
        return bool(self.incarnation) and number <= self.number


def _num_grains(change: CacheChange) -> int:
    return len(change.stored) + len(change.evicted)
