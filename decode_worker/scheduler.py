"""Decides which sequences the decode worker runs, and which hand-over gets blocks next. Pure.

Blocks for a hand-over are granted when the prefill worker asks (it has scheduled the prompt),
all or none, oldest claim first; whoever already runs keeps head-room of a block each.
"""

from collections.abc import Callable
from typing import Protocol

from cluster.types import BlockId, LoadReport
from engine.batch import Batch
from engine.batcher import Batcher, Drawn
from engine.sequence import Sequence
from engine.thread import LayerDone, StepResult
from worker.cost import StepCost
from worker.scheduler import BatcherScheduler


class SequenceOwner(Protocol):
    """Owns the sequence: is told at once, on the event loop, what each step gave."""

    def scheduled(self) -> None:
        """Work on its prompt is in the batch that runs next."""

    def drawn(self, drawn: Drawn, seconds: float) -> bool:
        """Takes a token; False when the sequence has ended with it."""

    def failed(self, error: Exception) -> None: ...


class DecodeScheduler(BatcherScheduler):
    """Grants blocks to prompts computed elsewhere, oldest claim first; what its methods promise is
    said in `worker/compute.py`."""

    def __init__(self, batcher: Batcher, cost: StepCost, changed: Callable[[], None]) -> None:
        super().__init__(batcher, cost, changed)
        self._elsewhere = batcher.elsewhere

    # -- sequences -----------------------------------------------------------------------

    def expect(self, sequence: Sequence) -> None:
        self._elsewhere.expected.add(sequence)

    def claim(self, sequence: Sequence, granted: Callable[[], None]) -> None:
        self._elsewhere.expected.discard(sequence)
        self._elsewhere.claims[sequence] = granted
        self._grant()

    def join(self, sequence: Sequence, forks: list[Sequence]) -> None:
        self._elsewhere.reserved.discard(sequence)
        sequence.num_computed = sequence.num_tokens - 1
        self.batcher.join(sequence)
        for fork in forks:
            fork.block_table = list(sequence.block_table)
            fork.num_computed, fork.num_stored = sequence.num_computed, sequence.num_stored
            self.batcher.run_fork(fork)
        self._changed()

    def forgo(self, sequence: Sequence) -> list[BlockId]:
        self._elsewhere.expected.discard(sequence)
        self._elsewhere.claims.pop(sequence, None)
        if sequence not in self._elsewhere.reserved:
            return []
        self._elsewhere.reserved.discard(sequence)
        num_held = sequence.num_computed // self.batcher.pool.block_size
        unwritten = sequence.block_table[num_held:]
        self.batcher.pool.release(sequence.block_table[:num_held])
        sequence.block_table, sequence.num_computed = [], 0
        self._freed()
        return unwritten

    def drop(self, sequence: Sequence) -> None:
        self.batcher.drop(sequence)
        self._freed()

    def pause(self, sequence: Sequence) -> None:
        self.batcher.pause(sequence)

    def resume(self, sequence: Sequence) -> None:
        if sequence in self.batcher.paused:
            self.batcher.resume(sequence)
            self._changed()

    def look_again(self) -> bool:
        if self.batcher.paused:
            self._freed()
        return bool(self.batcher.paused)

    # -- steps ---------------------------------------------------------------------------

    def next_batch(self) -> Batch | None:
        if self._elsewhere.claims and self.batcher.make_way():
            self._grant()
        batch = self.batcher.next_batch()
        for row in batch.rows if batch is not None else ():
            if not row.sequence.has_begun:
                row.sequence.owner.scheduled()
        return batch

    def layer_done(self, batch: Batch) -> LayerDone | None:
        return None

    def complete(self, batch: Batch, result: StepResult) -> None:
        for drawn in self._completed(batch, result):
            owner: SequenceOwner = drawn.sequence.owner
            if not owner.drawn(drawn, result.seconds):
                self.batcher.drop(drawn.sequence)
        self._freed()

    def fail(self, error: Exception) -> None:
        for sequence in self.batcher.abort_batch():
            sequence.owner.failed(error)
        self._freed()

    # -- state ---------------------------------------------------------------------------

    @property
    def num_waiting(self) -> int:
        return self.batcher.num_waiting + len(self._elsewhere)

    @property
    def num_claimed_tokens(self) -> int:
        """Counts tokens of prompts computed elsewhere, without blocks here yet: these look free."""
        claimed = sum(sequence.num_tokens for sequence in self._elsewhere.claims)
        return claimed + sum(sequence.num_tokens for sequence in self._elsewhere.expected)

    @property
    def _num_reserved_tokens(self) -> int:
        return sum(sequence.num_tokens for sequence in self._elsewhere.reserved)

    def load(self) -> LoadReport:
        return self._load(
            num_waiting=self.num_waiting,
            num_context_tokens=self.batcher.num_context_tokens + self._num_reserved_tokens,
            num_claimed_tokens=self.num_claimed_tokens,
        )

    def check(self) -> None:
        """Raises AssertionError unless the blocks of running and reserved ones are held."""
        self.batcher.check()
        for sequence in self._elsewhere.reserved:
            assert all(self.batcher.pool.references(b) for b in sequence.block_table)

    def _freed(self) -> None:
        self._grant()
        super()._freed()

    def _grant(self) -> None:
        """Grants blocks; those put back come first, unless they wait for their own siblings."""
        batcher, elsewhere = self.batcher, self._elsewhere
        while elsewhere.claims and not batcher.is_owed():
            num_active = batcher.num_active + len(elsewhere.reserved)
            claim = next(iter(elsewhere.claims))
            if num_active >= batcher.budget.max_sequences:
                return
            if not batcher.reserve(claim, head_room_blocks=num_active):
                return
            granted = elsewhere.claims.pop(claim)
            elsewhere.reserved.add(claim)
            granted()
