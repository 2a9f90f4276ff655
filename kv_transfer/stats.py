"""The counters of every pair of workers, at one end: by peer, direction and transport. On the
event loop; a transfer costs them microseconds.

The number of pairs is bounded: those whose peer is long gone lapse, and if there are still too
many, those that moved nothing for longest. What lapses stays in the totals.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Self

from cluster.histogram import Histogram
from cluster.types import (
    Direction,
    Incarnation,
    PairFailures,
    PairReport,
    WorkerId,
)
from kv_transfer.life import Life
from kv_transfer.transfer import State
from kv_transfer.transport import Peer

BOUNDS_S = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


class Reason(StrEnum):
    """Names why a hand-over failed."""

    CANCELLED = "cancelled"
    LAPSED = "lapsed"
    WRITER_DIED = "writer_died"
    RECEIVER_DIED = "receiver_died"
    WRITER_CLOSED = "writer_closed"
    WRITE_FAILED = "write_failed"
    PROTOCOL = "protocol"
    SHORT = "short"
    DIGEST = "digest"


@dataclass(slots=True, eq=False)
class TransferCounters:
    num_transfers: int = 0  # that landed whole; at the receiver: that were verified
    num_bytes: int = 0
    num_spans: int = 0
    write_seconds: Histogram = field(default_factory=lambda: Histogram(BOUNDS_S))
    verify_s: float = 0.0
    num_fenced: int = 0  # messages of epochs that were over, ignored
    num_refused_writes: int = 0  # stopped before their first byte
    failures: Counter[tuple[State, Reason]] = field(default_factory=Counter)

    def transferred(
        self, *, num_bytes: int, write_s: float, num_spans: int = 0, verify_s: float = 0.0
    ) -> None:
        self.num_transfers += 1
        self.num_bytes += num_bytes
        self.num_spans += num_spans
        self.write_seconds.add(write_s)
        self.verify_s += verify_s

    def merge(self, other: Self) -> None:
        self.num_transfers += other.num_transfers
        self.num_bytes += other.num_bytes
        self.num_spans += other.num_spans
        self.write_seconds.merge(other.write_seconds)
        self.verify_s += other.verify_s
        self.num_fenced += other.num_fenced
        self.num_refused_writes += other.num_refused_writes
        self.failures.update(other.failures)

    def as_dict(self) -> dict[str, float]:
        failures = {
            f"transfer_failures.{phase}.{reason}": float(count)
            for (phase, reason), count in self.failures.items()
        }
        return {
            "transfers_verified": float(self.num_transfers),
            "transfer_bytes": float(self.num_bytes),
            "transfer_write_s": self.write_seconds.sum,
            "transfer_verify_s": self.verify_s,
            "transfer_fenced": float(self.num_fenced),
            **failures,
        }


MAX_PAIRS = 256
LAPSE_S = 600.0  # after the peer's end, for a reader to see how it ended
_MAX_NAMES = 4 * MAX_PAIRS


class _Key(NamedTuple):
    worker: WorkerId
    direction: Direction
    transport: str


@dataclass(slots=True, eq=False)
class _Pair:
    life: Life  # of the peer that was met last
    counters: TransferCounters = field(default_factory=TransferCounters)
    used_at: float = 0.0


class PairStats:
    """One worker's. Survives its peers' lives: a worker that starts again keeps its pair."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pairs: OrderedDict[_Key, _Pair] = OrderedDict()  # used longest ago first
        self._names: OrderedDict[Incarnation, WorkerId] = OrderedDict()
        self._lapsed = {direction: TransferCounters() for direction in Direction}

    def introduce(self, incarnation: Incarnation, worker: WorkerId) -> None:
        """Says whose life this is. Peers that nobody introduced are called by their life."""
        self._names[incarnation] = worker
        while len(self._names) > _MAX_NAMES:
            self._names.popitem(last=False)

    def sent(self, peer: Peer) -> TransferCounters:
        return self._of(peer, Direction.SENT)

    def received(self, peer: Peer) -> TransferCounters:
        return self._of(peer, Direction.RECEIVED)

    def total(self, direction: Direction) -> TransferCounters:
        """Sums the counters of all pairs there ever were."""
        total = TransferCounters()
        total.merge(self._lapsed[direction])
        for key, pair in self._pairs.items():
            if key.direction is direction:
                total.merge(pair.counters)
        return total

    def reports(self, quarantined: Mapping[Peer, int]) -> tuple[PairReport, ...]:
        """Reports them in order of their names; `quarantined` are blocks that nobody may use, by
        who may still write into them."""
        self._lapse()
        blocks: Counter[_Key] = Counter()
        for peer, num_blocks in quarantined.items():
            blocks[self._key(peer, Direction.RECEIVED)] += num_blocks
        return tuple(
            _report(key, pair.counters, blocks[key]) for key, pair in sorted(self._pairs.items())
        )

    def _of(self, peer: Peer, direction: Direction) -> TransferCounters:
        key = self._key(peer, direction)
        pair = self._pairs.get(key)
        if pair is None:
            pair = self._pairs[key] = _Pair(peer.life)
            while len(self._pairs) > MAX_PAIRS:
                self._drop(next(iter(self._pairs)))
        pair.life, pair.used_at = peer.life, self._clock()
        self._pairs.move_to_end(key)
        return pair.counters

    def _key(self, peer: Peer, direction: Direction) -> _Key:
        name = self._names.get(peer.incarnation, WorkerId(peer.incarnation))
        return _Key(name, direction, peer.transport)

    def _lapse(self) -> None:
        limit = self._clock() - LAPSE_S
        over = [k for k, pair in self._pairs.items() if pair.life.is_over and pair.used_at < limit]
        for key in over:
            self._drop(key)

    def _drop(self, key: _Key) -> None:
        self._lapsed[key.direction].merge(self._pairs.pop(key).counters)


def _report(key: _Key, counters: TransferCounters, num_quarantined: int) -> PairReport:
    return PairReport(
        peer=key.worker,
        direction=key.direction,
        transport=key.transport,
        num_transfers=counters.num_transfers,
        num_bytes=counters.num_bytes,
        num_spans=counters.num_spans,
        write_seconds=counters.write_seconds.report(),
        verify_s=counters.verify_s,
        failures=tuple(
            PairFailures(phase=phase, reason=reason, count=count)
            for (phase, reason), count in sorted(counters.failures.items())
        ),
        num_quarantined_blocks=num_quarantined,
        num_fenced=counters.num_fenced,
        num_refused_writes=counters.num_refused_writes,
    )
