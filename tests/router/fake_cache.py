"""The cache of a worker that computes nothing: which grains it would hold, least recently used
first, told to whoever follows its log."""

from collections import OrderedDict
from collections.abc import Sequence

from cluster.events import EventLog
from cluster.types import CacheChange, GrainHash


class FakeCache:
    def __init__(self, log: EventLog, capacity: int) -> None:
        self._log = log
        self._capacity = capacity
        self._grains: OrderedDict[GrainHash, None] = OrderedDict()

    def use(self, hashes: Sequence[GrainHash]) -> int:
        """Holds these from now on. Returns how many leading ones it held before."""
        held, num_held = self._grains, 0
        while num_held < len(hashes) and hashes[num_held] in held:
            num_held += 1
        stored = [grain for grain in hashes if grain not in held]
        for grain in reversed(hashes):  # of a chain the leaf goes before its root
            held[grain] = None
            held.move_to_end(grain)
        evicted = [held.popitem(last=False)[0] for _ in range(len(held) - self._capacity)]
        self._log.append(CacheChange(stored=tuple(stored), evicted=tuple(evicted)))
        return num_held
