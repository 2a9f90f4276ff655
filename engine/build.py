"""Which engine a worker runs, by name. Torch is imported only when it is the one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.errors import ConfigError
from cluster.types import KvLayout
from engine.checkpoint import load_spec
from engine.echo import EchoEngine, echo_layout
from engine.thread import ForwardEngine

EngineKind = Literal["torch", "echo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    kind: EngineKind
    checkpoint: Path
    num_blocks: int
    block_size: int
    num_threads: int
    device: str = "cpu"


def layout_of(choice: EngineChoice) -> KvLayout:
    """Geometry of the KV pool that this engine needs.

    Raises CheckpointError for a directory that cannot be served.
    """
    if choice.kind == "echo":
        return echo_layout(num_blocks=choice.num_blocks, block_size=choice.block_size)
    spec = load_spec(choice.checkpoint)
    return KvLayout(
        num_layers=spec.num_layers,
        num_blocks=choice.num_blocks,
        block_size=choice.block_size,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
    )


def context_length(choice: EngineChoice) -> int:
    """The longest sequence that the model was made for."""
    if choice.kind == "echo":
        return choice.num_blocks * choice.block_size
    return load_spec(choice.checkpoint).context_length


def build_engine(choice: EngineChoice, kv_buffer: memoryview) -> ForwardEngine:
    """The engine over `kv_buffer`, which holds the layout's `pool_bytes`."""
    if choice.kind == "echo":
        return EchoEngine(layout_of(choice), kv_buffer)
    if choice.device != "cpu":
        raise ConfigError(
            f"'device' is '{choice.device}', but the KV pool lies in host memory: no transport "
            "here reaches a GPU's memory yet. Use 'cpu'."
        )
    from engine.engine import Engine, EngineConfig

    config = EngineConfig(
        checkpoint=choice.checkpoint,
        num_blocks=choice.num_blocks,
        block_size=choice.block_size,
        num_threads=choice.num_threads,
        device=choice.device,
    )
    return Engine(load_spec(choice.checkpoint), config, kv_buffer)
