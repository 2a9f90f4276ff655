"""What a decode worker's YAML may say."""

from dataclasses import dataclass
from typing import Literal

from worker.config import WorkerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeWorkerConfig(WorkerConfig):
    # What KV may be narrowed to on its way here; it then serves its own request only.
    wire_dtype: Literal["float32", "bfloat16", "float16", "int8"] | None = None  # lossless only
    # A hand-over that has no blocks by then is computed here instead. That needs as many blocks:
    # only its prefill worker gains, which gives way by itself when it is full.
    grant_s: float = 300.0
