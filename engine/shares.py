"""Says how many sequences one request may run while others wait. Pure.

With k requests present and s slots the *share* of each is max(1, s // k) sequences. Slots that
nobody with less than its share waits for go to whoever is next. Requests of one sequence are all
alike here: their order decides.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import attrgetter

from engine.sequence import Sequence

MIN_RUN_TOKENS = 32  # put back sooner, a sequence would be computed again for too little

_request = attrgetter("request_id")


@dataclass(slots=True, eq=False)
class Elsewhere:
    """The sequences of a worker whose prompts are computed elsewhere; its scheduler's to keep."""

    expected: set[Sequence] = field(default_factory=set)  # no blocks asked for yet
    # Wait for blocks, oldest first: what each is told when it has them.
    claims: dict[Sequence, Callable[[], None]] = field(default_factory=dict)
    reserved: set[Sequence] = field(default_factory=set)  # granted, their KV still on its way

    def __len__(self) -> int:
        return len(self.expected) + len(self.claims) + len(self.reserved)


class Shares:
    """One look at who runs how much and who waits; `began` and `put_back` keep it true."""

    def __init__(
        self,
        running: Iterable[Sequence],
        waiting: Iterable[Sequence],
        *,
        num_requests: int,
        num_slots: int,
    ) -> None:
        self.share = max(1, num_slots // max(1, num_requests))
        self._num_running = Counter(map(_request, running))
        # Of requests that run less than their share: how many of their sequences wait.
        num_waiting, num_running = Counter(map(_request, waiting)), self._num_running
        self._short = {r: num for r, num in num_waiting.items() if num_running[r] < self.share}

    @property
    def num_wanted(self) -> int:
        """Slots that those lack who wait with less than their share."""
        return sum(
            min(num, self.share - self._num_running[request])
            for request, num in self._short.items()
        )

    def is_short(self, sequence: Sequence) -> bool:
        """Tells whether its request runs less than its share."""
        return self._num_running[sequence.request_id] < self.share

    def is_passed_over(self, sequence: Sequence) -> bool:
        """Tells whether another request waits that comes before its next one."""
        return bool(self._short) and not self.is_short(sequence)

    def above(self, running: Iterable[Sequence]) -> list[Sequence]:
        """Gives those of them whose requests run more than their share, and of these the most."""
        above = [s for s in running if self._num_running[s.request_id] > self.share]
        most = max((self._num_running[s.request_id] for s in above), default=0)
        return [s for s in above if self._num_running[s.request_id] == most]

    def began(self, sequence: Sequence) -> None:
        """It waits no more."""
        request = sequence.request_id
        self._num_running[request] += 1
        if request in self._short:
            self._short[request] -= 1
            if not (self._short[request] and self.is_short(sequence)):
                del self._short[request]

    def put_back(self, sequence: Sequence) -> None:
        """It ran above its request's share."""
        self._num_running[sequence.request_id] -= 1


def has_run_enough(sequence: Sequence) -> bool:
    return len(sequence.output_ids) - sequence.num_output_before >= MIN_RUN_TOKENS
