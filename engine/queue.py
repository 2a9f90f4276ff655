"""The order in which prompts are computed, whose turn it is, and who waits for what another
computes. Pure.

First by priority, then by when a prompt is due. That is a point in time, so nobody is overtaken
for ever: what arrives after a prompt is due is computed after it. Passed over is who is not read,
and whose request has its share while another waits that has less.
"""

import bisect
from collections import Counter
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Sequences
from itertools import chain
from typing import NamedTuple

from cluster.types import MAX_DUE_S, GrainHash
from engine.backlog import Work
from engine.batch import Batch
from engine.block_pool import BlockPool
from engine.prefixes import Prefixes
from engine.sequence import Sequence
from engine.shares import Elsewhere, Shares

_Place = tuple[int, float, int]  # priority, when it is due, who came first


class _Part(NamedTuple):
    """Tokens of a prompt that are computed when it is somebody's turn: as a rule its own."""

    turn: Sequence
    start: int
    stop: int


class Queue:
    """Owns the places of all sequences of a batcher, and those that wait."""

    def __init__(self, pool: BlockPool, num_slots: int) -> None:
        self.waiting: list[Sequence] = []  # next first
        self.paused: set[Sequence] = set()  # running or waiting, but nobody reads them
        self.elsewhere = Elsewhere()
        self._num_slots = num_slots
        self._pool = pool
        self._prefixes = Prefixes(pool)  # of the waiting ones
        self._places: dict[Sequence, _Place] = {}
        self._present: Counter[str] = Counter()  # sequences by request
        self._num_entered = 0

    def enter(self, sequence: Sequence) -> None:
        """Gives it its place, which it keeps until it leaves."""
        self._num_entered += 1
        self._present[sequence.request_id] += sequence not in self._places
        self._places[sequence] = (
            -sequence.params.priority,
            sequence.due_at,
            self._num_entered,
        )

    def leave(self, sequence: Sequence) -> None:
        if self._places.pop(sequence, None) is not None:
            self._present[sequence.request_id] -= 1
            if not self._present[sequence.request_id]:
                del self._present[sequence.request_id]

    def wait(self, sequence: Sequence) -> None:
        self._prefixes.add(sequence)
        bisect.insort(self.waiting, sequence, key=self._places.__getitem__)

    def wait_no_more(self, sequence: Sequence) -> None:
        self._prefixes.forget(sequence)
        self.waiting.remove(sequence)

    def last(self, sequences: list[Sequence]) -> Sequence:
        return max(sequences, key=self._places.__getitem__)

    # -- whose turn it is --------------------------------------------------------------------

    @property
    def num_waiting(self) -> int:
        """Sequences that somebody reads."""
        num_paused = sum(s in self.paused for s in self.waiting) if self.paused else 0
        return len(self.waiting) - num_paused

    @property
    def has_siblings(self) -> bool:
        """Tells whether any request has several sequences."""
        return len(self._places) > len(self._present)

    def shares(self, running: list[Sequence]) -> Shares | None:
        """None where every request has one sequence: none can hold more than another."""
        if not self.has_siblings:
            return None
        waiting: Iterator[Sequence] = chain(self.waiting, self.elsewhere.claims)
        if self.paused:
            running = [s for s in running if s not in self.paused]
            waiting = (s for s in waiting if s not in self.paused)
        return Shares(
            running,
            waiting,
            num_requests=len(self._present) + len(self.elsewhere),
            num_slots=self._num_slots,
        )

    def next_in_turn(self, shares: Shares | None) -> Sequence | None:
        return next((s for s in self.waiting if not self._is_passed_over(s, shares)), None)

    def is_owed(self, shares: Shares | None) -> bool:
        """Tells whether one that was put back comes before the new: its reader waited longest."""
        return any(s.num_preemptions and not self._is_passed_over(s, shares) for s in self.waiting)

    def others_wait(self, sequence: Sequence) -> bool:
        """Tells whether another request waits for whatever."""
        waiting = (s for s in (*self.waiting, *self.elsewhere.claims) if s not in self.paused)
        return any(s.request_id != sequence.request_id for s in waiting)

    def prompts(
        self, begun: list[Sequence], admit: Callable[[Sequence], bool], shares: Shares | None
    ) -> Iterator[Sequence]:
        """The begun prompts and the waiting ones that `admit` lets begin, in their order. One
        that waits for what another computes lends that one its place, so some come twice."""
        begun = sorted(begun, key=self._places.__getitem__, reverse=True)
        computing = {self._next_grain(s): s for s in begun} if self.waiting else {}
        for sequence in list(self.waiting):
            while begun and self._places[begun[-1]] < self._places[sequence]:
                yield begun.pop()
            if self._is_passed_over(sequence, shares):
                continue
            missing = self._prefixes.first_missing(sequence)
            if missing is not None and (other := computing.get(missing)) is not None:
                yield other
            elif admit(sequence):
                if shares is not None:
                    shares.began(sequence)
                computing[self._next_grain(sequence)] = sequence
                yield sequence
            else:
                break
        yield from reversed(begun)

    # -- what there is to do -----------------------------------------------------------------

    def left(self, running: list[Sequence], in_flight: Batch | None, now: float) -> list[Work]:
        """Gives what is left of each prompt after the step that runs, in their order, but for those
        that are paused. Of what several share, only the first has to compute it: what others wait
        for has their place."""
        rows = in_flight.rows if in_flight is not None else ()
        num_new = {row.sequence: row.num_new for row in rows}
        leaders: dict[GrainHash, Sequences[GrainHash]] = {}
        begun: dict[Sequence, int] = {}  # -> of how many tokens there is KV by then
        computing: dict[GrainHash | None, Sequence] = {}
        for sequence in running:
            num_done = sequence.num_computed + num_new.get(sequence, 0)
            is_paused = sequence in self.paused
            if not is_paused and sequence.num_tokens - num_done > bool(sequence.output_ids):
                begun[sequence] = num_done
                if (missing := self._next_grain(sequence)) is not None:
                    leaders.setdefault(missing, self._hashes(sequence))
                    computing.setdefault(missing, sequence)
        waiting = [sequence for sequence in self.waiting if sequence not in self.paused]
        expected = self._prefixes.num_expected(waiting, leaders)
        parts: list[_Part] = []
        for sequence, num_done in zip(waiting, expected, strict=True):
            other = computing.get(self._prefixes.first_missing(sequence)) if computing else None
            if other is not None and self._places[sequence] < self._places[other]:
                parts.append(_Part(sequence, begun[other], num_done))
                begun[other] = max(begun[other], num_done)
            parts.append(_Part(sequence, num_done, sequence.num_tokens))
        parts += [_Part(sequence, done, sequence.num_tokens) for sequence, done in begun.items()]
        parts.sort(key=lambda part: self._places[part.turn])
        return [
            Work(_due_s(turn, now), stop - start, start)
            for turn, start, stop in parts
            if start < stop
        ]

    def _is_passed_over(self, sequence: Sequence, shares: Shares | None) -> bool:
        if sequence in self.paused:
            return True
        return shares is not None and shares.is_passed_over(sequence)

    def _next_grain(self, sequence: Sequence) -> GrainHash | None:
        """The first of a prompt that has begun which nobody finds yet."""
        index = sequence.num_stored * self._pool.block_size // self._pool.hash_grain
        hashes = self._hashes(sequence)
        return hashes[index] if index < len(hashes) else None

    def _hashes(self, sequence: Sequence) -> Sequences[GrainHash]:
        return sequence.hashes(sequence.num_tokens, self._pool.hash_grain)


def _due_s(sequence: Sequence, now: float) -> float:
    """Gives when it is due as a prompt of priority 0 sees it: others come before or after it
    whenever they are due."""
    if (priority := sequence.params.priority) != 0:
        return 0.0 if priority > 0 else MAX_DUE_S
    due_s = sequence.due_at - now
    return due_s if due_s > 0.0 else 0.0
