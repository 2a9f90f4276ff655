"""Holds what both roles' schedulers share: a batcher, and a cost that learns from its steps."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from cluster.types import BlockId, LoadReport
from engine.batch import Batch
from engine.batcher import Batcher, Drawn
from engine.sequence import Sequence
from engine.step_loop import StepScheduler
from engine.thread import StepResult
from worker.compute import Compute
from worker.cost import StepCost
from worker.steps import StepCounts


class Scheduler(Compute, StepScheduler, Protocol):
    """Computes by steps of our engine."""

    @property
    def steps(self) -> StepCounts: ...


class BatcherScheduler:
    """Owns a batcher. `changed` is called when a batch may form."""

    def __init__(self, batcher: Batcher, cost: StepCost, changed: Callable[[], None]) -> None:
        self.batcher = batcher
        self.kv = batcher.pool
        self.steps = StepCounts()
        self._cost = cost
        self._changed = changed

    @property
    def num_running(self) -> int:
        return len(self.batcher.running)

    @property
    def num_waiting(self) -> int:
        return self.batcher.num_waiting

    @property
    def could_run(self) -> bool:
        return self.batcher.could_run

    def submit(self, sequence: Sequence) -> None:
        self.batcher.add(sequence)
        self._changed()

    def release(self, blocks: list[BlockId]) -> None:
        self.batcher.pool.release(blocks)
        self._freed()

    def predicted_s(self, batch: Batch) -> float:
        return self._cost.predicted_s(batch.prompts, batch.decode_contexts)

    def observe(self, batch: Batch, seconds: float) -> None:
        self.steps.seconds.add(seconds)
        self._cost.observe(batch.prompts, batch.decode_contexts, seconds)

    def counters(self) -> dict[str, float]:
        return self.batcher.counters.as_dict()

    def _completed(self, batch: Batch, result: StepResult) -> list[Drawn]:
        dropped = self.batcher.dropped
        drawn = self.batcher.complete(result.rows)
        self.steps.ran(batch, result.seconds, drawn, dropped)
        return drawn

    def _freed(self) -> None:
        self._changed()

    def _load(self, **of_the_role: Any) -> LoadReport:
        return replace(
            self.batcher.load(),
            prefill_cost=self._cost.prefill,
            decode_cost=self._cost.decode,
            prefill_error=self._cost.prefill_error,
            decode_error=self._cost.decode_error,
            **of_the_role,
        )
