"""Tells an engine where and how it computes. Knows no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cluster.errors import ConfigError
from cluster.types import DTYPE_BYTES

if TYPE_CHECKING:
    from engine.layers.linear import Product

# auto: native on a CPU, triton on CUDA, where there is a kernel
AttentionForm = Literal["auto", "native", "triton", "torch"]
Weights = Literal["float32", "bfloat16", "int8"]
# How who attends is reported: by this name, and so where the kernel is missed.
ATTENTION = "attention"
KERNEL_MISSING = "torch, for want of a kernel"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    checkpoint: Path
    num_blocks: int
    block_size: int
    num_threads: int
    kind: Literal["torch", "echo"] = "torch"
    device: str = "cpu"
    dtype: str = "float32"  # of computation, and of weights that 'weights' does not narrow
    kv_dtype: str = "float32"  # of the cache
    attention: AttentionForm = "auto"
    weights: Weights = "float32"  # as matrices are kept; narrower ones on a CPU only
    product: "Product | None" = None  # None: for each matrix those that are fastest here

    def __post_init__(self) -> None:
        for name in ("dtype", "kv_dtype"):
            if (value := getattr(self, name)) not in DTYPE_BYTES:
                known = ", ".join(DTYPE_BYTES)
                raise ConfigError(f"'{name}' must be one of {known}, not '{value}'.")
        if self.weights != "float32" and (self.device != "cpu" or self.dtype != "float32"):
            raise ConfigError(
                f"'weights' are '{self.weights}': narrower ones are for a CPU that computes in"
                f" float32, not for '{self.device}' and {self.dtype}."
            )
        for name in ("num_blocks", "block_size", "num_threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"'{name}' must be at least 1, not {getattr(self, name)}.")
