"""Decides which prompts the prefill worker computes next. Pure.

A prompt takes all its blocks when it is scheduled and keeps them until its KV has been handed
over. Above a watermark of held blocks no further prompt is scheduled.
"""

from collections.abc import Callable
from typing import Protocol

from cluster.types import LoadReport
from engine.batch import Batch
from engine.batcher import Batcher, Drawn
from engine.sequence import Sequence
from engine.thread import LayerDone, StepResult
from worker.cost import StepCost
from worker.scheduler import BatcherScheduler


class PromptOwner(Protocol):
    """Owns the prompt: is told at once, on the event loop (`computed`: on the engine's thread), how
    far it is."""

    def scheduled(self) -> None:
        """Its blocks are taken and its first chunk is in this batch."""

    def computed(self, layer: int, num_tokens: int) -> None:
        """The KV of its first `num_tokens` tokens is there in this layer."""

    def chunk_done(self, seconds: float) -> None: ...

    def first_tokens(self, drawn: list[Drawn]) -> None: ...

    def failed(self, error: Exception) -> None: ...

    def give_up(self) -> bool:
        """Frees its blocks for another prompt, if its receiver has not granted any yet."""


class PrefillScheduler(BatcherScheduler):
    """Keeps the blocks of prompts that are being handed over."""

    def __init__(self, batcher: Batcher, cost: StepCost, changed: Callable[[], None]) -> None:
        super().__init__(batcher, cost, changed)
        self._begun: set[Sequence] = set()
        self._handing_over: dict[Sequence, None] = {}  # oldest first

    # -- sequences -----------------------------------------------------------------------

    def drop(self, sequence: Sequence) -> None:
        if sequence in self._handing_over:
            del self._handing_over[sequence]
            self.batcher.release(sequence)
        else:
            self.batcher.drop(sequence)
        self._begun.discard(sequence)
        self._changed()

    # -- steps ---------------------------------------------------------------------------

    def next_batch(self) -> Batch | None:
        batch = self.batcher.next_batch()
        if batch is None and self.batcher.waiting:
            self._make_room()
        for row in batch.rows if batch is not None else ():
            if row.sequence not in self._begun:
                self._begun.add(row.sequence)
                row.sequence.owner.scheduled()
        return batch

    def layer_done(self, batch: Batch) -> LayerDone | None:
        rows = [(row.sequence.owner, row.stop) for row in batch.rows]

        def tell_owners(layer: int) -> None:
            for owner, stop in rows:
                owner.computed(layer, stop)

        return tell_owners

    def complete(self, batch: Batch, result: StepResult) -> None:
        ended = self._completed(batch, result)
        by_owner: dict[PromptOwner, list[Drawn]] = {}
        for drawn in ended:
            by_owner.setdefault(drawn.sequence.owner, []).append(drawn)
        for owner, drawn_here in by_owner.items():
            owner.chunk_done(result.seconds)
            if drawn_here[0].token is not None:
                self._begun.discard(drawn_here[0].sequence)
                self._handing_over[drawn_here[0].sequence] = None
                owner.first_tokens(drawn_here)
        self._changed()

    def fail(self, error: Exception) -> None:
        for sequence in self.batcher.abort_batch():
            self._begun.discard(sequence)
            sequence.owner.failed(error)

    def _make_room(self) -> None:
        """Prompts wait, none runs: all blocks are held by hand-overs. The oldest whose receiver
        has no room gives way, so that it does not hold up prompts for other receivers."""
        for sequence in self._handing_over:
            if sequence.owner.give_up():
                return

    # -- state ---------------------------------------------------------------------------

    def load(self) -> LoadReport:
        return self._load(num_running=len(self.batcher.running) + len(self._handing_over))

    def check(self) -> None:
        """Raises AssertionError unless running prompts and hand-overs hold their blocks."""
        self.batcher.check()
        for sequence in self._handing_over:
            assert all(self.batcher.pool.references(b) for b in sequence.block_table)
