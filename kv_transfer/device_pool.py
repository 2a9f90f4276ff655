"""A worker's KV memory on a device, as a tensor: what peers reach by `nccl`, or by `gloo` over
the host."""

from collections.abc import Callable

import torch
import xxhash
from torch import Tensor

from cluster.errors import ConfigError
from cluster.types import Incarnation
from kv_transfer.geometry import Spans
from kv_transfer.pool import KvPool
from kv_transfer.staging import HOST_STAGE_BYTES, Stage, on_own_stream, stagefuls


class DevicePool:
    """Taken in full when it is made, zeroed."""

    def __init__(self, incarnation: Incarnation, num_bytes: int, device: str) -> None:
        """Raises ConfigError for a device that is not there or has no room."""
        self.incarnation = incarnation
        self.num_bytes = num_bytes
        self.buffer = _zeros(num_bytes, device)

    def renew(self, incarnation: Incarnation) -> None:
        self.incarnation = incarnation

    def digester(self) -> Callable[[Spans], int]:
        stages: list[Stage] = []

        def digest(spans: Spans) -> int:
            if not stages:  # on its thread
                on_own_stream(self.buffer.device)
                stages.append(Stage(self.buffer, torch.device("cpu"), HOST_STAGE_BYTES))
            [stage] = stages
            hasher = xxhash.xxh3_64()
            for some in stagefuls(spans, HOST_STAGE_BYTES):
                stage.gather(some)
                hasher.update(stage.on_host(some.num_bytes).data)
            return int(hasher.intdigest())

        return digest

    def close(self) -> None:
        """The memory lives while tensors lie in it."""


def tensor_of(pool: KvPool) -> Tensor:
    """All of a pool, uint8, wherever it lies."""
    if isinstance(pool.buffer, Tensor):
        return pool.buffer
    return torch.frombuffer(pool.buffer, dtype=torch.uint8)


def _zeros(num_bytes: int, device: str) -> Tensor:
    try:
        return torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"There is no room for a KV pool of {num_bytes:,} bytes on the device '{device}', or "
            f"no such device ({reason}): lower num_blocks or choose another device."
        ) from error
