"""What both roles' schedulers have in common, as the rest of a worker sees them."""

from typing import Protocol

from cluster.types import BlockId, LoadReport
from engine import step_loop
from engine.batcher import Batcher


class Scheduler(step_loop.StepScheduler, Protocol):
    @property
    def batcher(self) -> Batcher: ...

    def release(self, blocks: list[BlockId]) -> None:
        """Gives blocks back to the pool: others may wait for them."""

    def load(self) -> LoadReport: ...

    def counters(self) -> dict[str, float]: ...

    def check(self) -> None:
        """Raises AssertionError unless every block is accounted for."""
