"""Says what a decode worker's YAML may hold."""

from dataclasses import dataclass
from typing import Literal

from cluster.config import check_range
from worker.config import WorkerConfig
from worker.outliving import Grace


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeWorkerConfig(WorkerConfig):
    # what KV may be narrowed to on its way here, to serve its own request only; null: nothing
    wire_dtype: Literal["float32", "bfloat16", "float16", "int8"] | None = None
    """Where the network is slower than prefill and answers may differ."""
    # a hand-over that has no blocks by then is computed here instead, which needs as many: only
    # its prefill worker gains, and that gives way by itself when it is full
    grant_s: float = 300.0
    """Lower it where prompts wait for blocks here while their prefill workers are full."""
    # an answer whose router is lost goes on for so long, by 256 tokens, until its client attaches
    # to it at another; 0: it ends with its router
    detached_s: float = 15.0
    """Raise it where routers take longer to come back; lower it where memory is scarce."""
    detached_bytes: int = 67108864  # of what such answers have said; the oldest are given up first
    """Raise it where thousands of long answers are in flight at a worker."""

    def __post_init__(self) -> None:
        WorkerConfig.__post_init__(self)  # by name: a class with slots is not the one written here
        check_range(self, "grant_s", above=0)
        check_range(self, "detached_s", "detached_bytes", at_least=0)

    @property
    def grace(self) -> Grace:
        return Grace(seconds=self.detached_s, most_bytes=self.detached_bytes)
