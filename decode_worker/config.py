"""What a decode worker's YAML may say."""

from dataclasses import dataclass

from worker.config import WorkerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeWorkerConfig(WorkerConfig):
    grant_s: float = 10.0  # a hand-over that has no blocks by then is computed here instead
