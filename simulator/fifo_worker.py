"""One worker of the smallest replay: it computes prompts one after another and holds a
least-recently-used cache of whole grains. What it says of its queue and what it really takes are
two things.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.types import GrainHash, PrefillCost, WorkerId
from engine.tail_reuse import TailReuse


class GrainCache:
    """Grains, the least recently used first; of one chain the leaf goes before its root."""

    __slots__ = ("_capacity", "_grains", "_tail")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._grains: OrderedDict[GrainHash, int] = OrderedDict()  # -> how old the cache was then
        self._tail = TailReuse(capacity)

    @property
    def num_unused(self) -> int:
        return self._capacity - len(self._grains)

    @property
    def tail_reuse(self) -> float:
        return self._tail.share

    def match(self, grains: Sequence[GrainHash]) -> int:
        held, depth = self._grains, 0
        for grain in grains:
            if grain not in held:
                break
            depth += 1
        return depth

    def put(self, grains: Sequence[GrainHash]) -> None:
        held, tail = self._grains, self._tail
        for grain in reversed(grains):
            if (used := held.get(grain)) is not None:
                tail.found(used, len(held))
            held[grain] = tail.age
            held.move_to_end(grain)
        while len(held) > self._capacity:
            held.popitem(last=False)
            tail.evicted()


class Queued(NamedTuple):
    """Holds what was queued, and what becomes of it."""

    grains: tuple[GrainHash, ...]
    behind: GrainHash | None  # where what it found cached ended
    num_new: int
    expected_s: float  # when it was to be done, as was believed when it was queued
    late_s: float  # how much later it would be done by its real begin
    done_s: float  # really


@dataclass(slots=True, eq=False)
class FifoWorker:
    """It predicts by `cost`; a prompt really takes `factor` times as long, times its own noise.

    As a real worker it reports its own estimate of its queue: what is left of the prompt that it
    computes, never less than nothing, and of the others what `cost` says. That it is slower than
    it believes shows there alone: as prompts that should be done and are not.
    """

    name: WorkerId
    cost: PrefillCost
    computed: GrainCache  # what a router is told of
    promised: GrainCache  # with what is queued: what is there when the next one's turn comes
    factor: float = 1.0
    queue: deque[Queued] = field(default_factory=deque)
    free_s: float = 0.0
    busy_s: float = 0.0
    num_new: int = 0  # prompt tokens queued
    behind: Counter[GrainHash | None] = field(default_factory=Counter)  # of the queue
    _expected_s: float = 0.0  # when the last of the queue was to be done

    def settle(self, now_s: float) -> None:
        """Takes in what has been computed until now."""
        while self.queue and self.queue[0].done_s <= now_s:
            done = self.queue.popleft()
            self.num_new -= done.num_new
            self.behind[done.behind] -= 1
            if not self.behind[done.behind]:
                del self.behind[done.behind]
            self.computed.put(done.grains)
        if not self.queue:
            self._expected_s = self.free_s

    def ahead_s(self, now_s: float) -> float:
        """Gives its own estimate of the time until it is done with all that is queued."""
        return self._expected_s + self._late_s(now_s) - now_s if self.queue else 0.0

    def submit(
        self, grains: tuple[GrainHash, ...], num_new: int, now_s: float, ready_s: float,
        service_s: float, noise: float, behind: GrainHash | None = None,
    ) -> float:  # fmt: skip
        """Queues a prompt whose prefix is there at `ready_s` and which takes `service_s` by the
        cost. Returns when it is done by the worker's estimate."""
        late_s = self._late_s(now_s)
        expected_s = max(ready_s - late_s, self._expected_s) + service_s
        begin_s, real_s = max(ready_s, self.free_s), service_s * self.factor * noise
        self._expected_s, self.free_s = expected_s, begin_s + real_s
        self.queue.append(
            Queued(
                grains, behind, num_new, expected_s, begin_s + service_s - expected_s, self.free_s
            )
        )
        self.busy_s += real_s
        self.num_new += num_new
        self.behind[behind] += 1
        self.promised.put(grains)
        return expected_s + late_s

    def _late_s(self, now_s: float) -> float:
        """Says how much later than expected the queue moves: by the begin of its first, or because
        that should be done by now."""
        if not self.queue:
            return 0.0
        first = self.queue[0]
        return max(first.late_s, now_s - first.expected_s)
