"""Which engine a worker runs, by name. Torch is imported only when it is the one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from cluster.errors import ConfigError
from cluster.measurements import Measurements
from cluster.types import KvLayout
from engine.checkpoint import load_spec
from engine.echo import EchoEngine, echo_layout
from engine.model_spec import ModelSpec
from engine.thread import ForwardEngine

if TYPE_CHECKING:
    from torch import Tensor

KvBuffer: TypeAlias = "memoryview | Tensor"
EngineKind = Literal["torch", "echo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    kind: EngineKind
    checkpoint: Path
    num_blocks: int
    block_size: int
    num_threads: int
    device: str = "cpu"
    kv_dtype: str = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePlan:
    """Holds what is known of an engine before its weights are read."""

    layout: KvLayout
    context_length: int  # the longest sequence that the model was made for
    # Over `layout.pool_bytes` of memory.
    build: "Callable[[KvBuffer, Measurements], ForwardEngine]"


def plan_engine(choice: EngineChoice) -> EnginePlan:
    """Reads the checkpoint's description, once.

    Raises CheckpointError for a directory that cannot be served, ConfigError for a choice that
    no engine has.
    """
    if choice.kind == "echo":
        if choice.kv_dtype != "float32":
            raise ConfigError("The echo engine keeps no numbers: leave 'kv_dtype' at float32.")
        layout = echo_layout(num_blocks=choice.num_blocks, block_size=choice.block_size)
        return EnginePlan(
            layout=layout,
            context_length=choice.num_blocks * choice.block_size,
            build=partial(_echo_engine, layout),
        )
    spec = load_spec(choice.checkpoint)
    return EnginePlan(
        layout=spec.kv_layout(
            num_blocks=choice.num_blocks, block_size=choice.block_size, dtype=choice.kv_dtype
        ),
        context_length=spec.context_length,
        build=partial(_torch_engine, choice, spec),
    )


def _echo_engine(
    layout: KvLayout, kv_buffer: KvBuffer, measurements: Measurements
) -> ForwardEngine:
    if not isinstance(kv_buffer, memoryview):
        raise ConfigError("The echo engine runs on the host: set 'device' to 'cpu'.")
    return EchoEngine(layout, kv_buffer)


def _torch_engine(
    choice: EngineChoice, spec: ModelSpec, kv_buffer: KvBuffer, measurements: Measurements
) -> ForwardEngine:
    from engine.engine import Engine, EngineConfig

    config = EngineConfig(
        checkpoint=choice.checkpoint,
        num_blocks=choice.num_blocks,
        block_size=choice.block_size,
        num_threads=choice.num_threads,
        device=choice.device,
        kv_dtype=choice.kv_dtype,
    )
    return Engine(spec, config, kv_buffer, measurements)
