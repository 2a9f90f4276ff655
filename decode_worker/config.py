"""Says what a decode worker's YAML may hold."""

from dataclasses import dataclass
from typing import Literal

from cluster.config import check_range
from worker.config import WorkerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeWorkerConfig(WorkerConfig):
    # what KV may be narrowed to on its way here, to serve its own request only; null: nothing
    wire_dtype: Literal["float32", "bfloat16", "float16", "int8"] | None = None
    """Where the network is slower than prefill and answers may differ."""
    # a hand-over that has no blocks by then is computed here instead, which needs as many: only
    # its prefill worker gains, and that gives way by itself when it is full
    grant_s: float = 300.0
    """Lower it where prompts wait for blocks here while their prefill workers are full."""

    def __post_init__(self) -> None:
        WorkerConfig.__post_init__(self)  # by name: a class with slots is not the one written here
        check_range(self, "grant_s", above=0)
