"""Counts what the steps of one worker took, and what of it was for nobody any more."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from cluster.histogram import Histogram
from engine.batch import Batch
from engine.batcher import Drawn
from engine.sequence import Sequence as Computed

STEP_BOUNDS_S: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05),
    *(0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5),
)


@dataclass(slots=True, eq=False)
class StepCounts:
    seconds: Histogram = field(default_factory=lambda: Histogram(STEP_BOUNDS_S))
    num_sampled: int = 0  # tokens
    dead_s: float = 0.0  # forward of requests that ended while it ran

    def ran(
        self, batch: Batch, seconds: float, drawn: Sequence[Drawn], dropped: Collection[Computed]
    ) -> None:
        """A forward has ended, and those `dropped` took nothing of it."""
        self.num_sampled += sum(each.token is not None for each in drawn)
        if dropped:
            num_dead = sum(row.num_new for row in batch.rows if row.sequence in dropped)
            self.dead_s += seconds * num_dead / sum(row.num_new for row in batch.rows)
