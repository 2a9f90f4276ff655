"""What both roles' schedulers have in common, as the rest of a worker sees them."""

from typing import Protocol

from cluster.types import BlockId, LoadReport
from engine import step_loop
from worker.kv_home import KvHome


class Scheduler(step_loop.StepScheduler, Protocol):
    @property
    def kv(self) -> KvHome: ...

    @property
    def num_running(self) -> int:
        """Sequences of which each may need a block more at any step."""

    @property
    def could_run(self) -> bool:
        """Whether a step could be formed now."""

    def release(self, blocks: list[BlockId]) -> None:
        """Gives blocks back to the pool: others may wait for them."""

    def load(self) -> LoadReport: ...

    def counters(self) -> dict[str, float]: ...

    def check(self) -> None:
        """Raises AssertionError unless every block is accounted for."""
