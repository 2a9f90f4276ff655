"""Tells the router what a modelled worker does: changes of its cache, numbered, and its load.

The real log numbers the changes and answers who missed some; the wire is a delay.
"""

from collections.abc import Callable
from dataclasses import replace

from cluster.events import EventLog
from cluster.types import CacheChange, GrainHash, Incarnation, LinkCost, LoadReport
from cluster.watch import PAIRS_EVERY
from engine.block_pool import BlockPool


class Feed:
    """One life of a worker's. `send` gets (number, change)."""

    def __init__(
        self,
        incarnation: Incarnation,
        pool: BlockPool,
        send: Callable[[int, CacheChange], None],
        links: tuple[LinkCost, ...],
    ) -> None:
        """`links`: told as seldom as real workers tell them."""
        self.log = EventLog(incarnation, capacity=64)
        self.loses_events = False
        self._pool = pool
        self._send = send
        self._links = links
        self._num_reports = 0
        self._admitted: list[str] = []

    def admitted(self, request_id: str) -> None:
        """The next report contains it."""
        self._admitted.append(request_id)

    def flush(self) -> None:
        """Sends what the cache gained and lost since the last time."""
        change = self._pool.take_changes()
        if change is None or not (change.stored or change.evicted):
            return
        self.log.append(change)
        if not self.loses_events:
            self._send(self.log.number, change)

    def report(self, load: LoadReport) -> LoadReport:
        admitted, self._admitted = self._admitted, []
        links = None if self._num_reports % PAIRS_EVERY else self._links
        self._num_reports += 1
        return replace(load, request_ids=tuple(admitted), links=links)

    def snapshot(self) -> tuple[int, list[GrainHash]]:
        """The number of the last change, and all grains after it."""
        number, grains = self.log.snapshot()
        return number, sorted(grains)  # an order that is the same in every process
