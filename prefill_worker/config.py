"""Says what a prefill worker's YAML may hold."""

from dataclasses import dataclass

from cluster.config import check_range
from worker.config import WorkerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillWorkerConfig(WorkerConfig):
    watermark: float = 0.05  # share of the pool kept free: above it no prompt is scheduled
    """Raise it where prompts that wait for their decode worker push out prefixes of others."""
    overlap: bool = True  # layers leave as they are computed; false: when all are, to compare
    """To measure what it brings."""

    def __post_init__(self) -> None:
        WorkerConfig.__post_init__(self)  # by name: a class with slots is not the one written here
        check_range(self, "watermark", at_least=0, at_most=1)
