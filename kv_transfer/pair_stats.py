"""The counters of every pair: by peer, direction and transport. On the event loop.

The number of pairs is bounded: those whose peer is long gone lapse, and if there are still too
many, those that moved nothing for longest. What lapses stays in the totals.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.types import Direction, Incarnation, PairFailures, PairReport, WorkerId
from kv_transfer.counters import TransferCounters
from kv_transfer.life import Life
from kv_transfer.transport import Peer

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

    def unknown(self, direction: Direction) -> TransferCounters:
        """For what cannot be told of any pair: it is in the totals alone."""
        return self._lapsed[direction]

    def total(self, direction: Direction) -> TransferCounters:
        """Of all pairs there ever were."""
        total = TransferCounters()
        total.merge(self._lapsed[direction])
        for key, pair in self._pairs.items():
            if key.direction is direction:
                total.merge(pair.counters)
        return total

    def reports(self, quarantined: Mapping[Peer, int]) -> tuple[PairReport, ...]:
        """In order of their names; `quarantined` are blocks that nobody may use, by who may
        still write into them."""
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
