"""Builds the engine that a worker runs, by name. Torch is imported only when it is the one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from cluster.errors import ConfigError
from cluster.measurements import Measurements
from cluster.types import KvLayout
from engine.checkpoint import load_spec
from engine.config import EngineConfig
from engine.echo import EchoEngine, echo_layout
from engine.model_spec import ModelSpec
from engine.thread import ForwardEngine

if TYPE_CHECKING:
    from torch import Tensor

KvBuffer: TypeAlias = "memoryview | Tensor"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePlan:
    """Holds what is known of an engine before its weights are read."""

    layout: KvLayout
    context_length: int  # the longest sequence that the model was made for
    # Over `layout.pool_bytes` of memory.
    build: "Callable[[KvBuffer, Measurements], ForwardEngine]"


def plan_engine(config: EngineConfig) -> EnginePlan:
    """Reads the checkpoint's description, once.

    Raises CheckpointError for a directory that cannot be served, ConfigError for a choice that
    no engine has.
    """
    if config.kind == "echo":
        if config.kv_dtype != "float32":
            raise ConfigError("The echo engine keeps no numbers: leave 'kv_dtype' at float32.")
        layout = echo_layout(num_blocks=config.num_blocks, block_size=config.block_size)
        return EnginePlan(
            layout=layout,
            context_length=config.num_blocks * config.block_size,
            build=partial(_echo_engine, layout),
        )
    spec = load_spec(config.checkpoint)
    return EnginePlan(
        layout=spec.kv_layout(
            num_blocks=config.num_blocks, block_size=config.block_size, dtype=config.kv_dtype
        ),
        context_length=spec.context_length,
        build=partial(_torch_engine, config, spec),
    )


def _echo_engine(
    layout: KvLayout, kv_buffer: KvBuffer, measurements: Measurements
) -> ForwardEngine:
    if not isinstance(kv_buffer, memoryview):
        raise ConfigError("The echo engine runs on the host: set 'device' to 'cpu'.")
    return EchoEngine(layout, kv_buffer)


def _torch_engine(
    config: EngineConfig, spec: ModelSpec, kv_buffer: KvBuffer, measurements: Measurements
) -> ForwardEngine:
    from engine.engine import Engine

    return Engine(spec, config, kv_buffer, measurements)
