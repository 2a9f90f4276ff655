"""The KV pool as tensors over a buffer that somebody else may own. Knows slots, not sequences.

A slot is one token's place: slot `s` lies in block `s // block_size`.
"""

from collections.abc import Sequence
from mmap import mmap

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cluster.types import KvLayout

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class KvCache:
    """K and V of all layers; `layers[i]` is [2, num_slots, num_kv_heads, head_dim]."""

    def __init__(
        self,
        layout: KvLayout,
        buffer: Tensor | memoryview | bytearray | mmap | None,
        device: torch.device,
    ) -> None:
        """`buffer` must outlive the cache; a tensor of bytes where it lies on a device. *Raises*
        ValueError where it does not fit."""
        shape = (
            layout.num_layers,
            layout.num_planes,
            layout.num_blocks * layout.block_size,
            layout.num_kv_heads,
            layout.head_dim,
        )
        dtype = DTYPES[layout.dtype]
        if buffer is None:
            pool = torch.zeros(shape, dtype=dtype, device=device)
        else:
            pool = _bytes_of(buffer, layout.pool_bytes, device).view(dtype).view(shape)
        self._blocks = pool.view(*shape[:2], layout.num_blocks, layout.block_size, *shape[3:])
        self.dtype = dtype
        self.device = device
        self.layers: tuple[Tensor, ...] = pool.unbind(0)

    def write(self, layer: int, slots: Tensor, keys_values: Tensor) -> None:
        """Store [num_tokens, 2, num_kv_heads, head_dim] in `slots` [num_tokens]."""
        source = keys_values.transpose(0, 1).to(self.dtype)
        self.layers[layer].index_copy_(1, slots, source)

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks in all layers; every source is read before any target is written."""
        if not copies:
            return
        sources, targets = torch.tensor(copies, device=self._blocks.device).t()
        self._blocks.index_copy_(2, targets, self._blocks.index_select(2, sources))


def slot_of(block_table: Sequence[int], block_size: int, position: int) -> int:
    return block_table[position // block_size] * block_size + position % block_size


def slots_of(
    block_table: Sequence[int], block_size: int, start: int, stop: int
) -> npt.NDArray[np.int64]:
    """The slot of each position in [start, stop)."""
    positions = np.arange(start, stop)
    first_block = start // block_size
    blocks = np.asarray(block_table[first_block : -(-stop // block_size)], dtype=np.int64)
    return blocks[positions // block_size - first_block] * block_size + positions % block_size


def _bytes_of(
    buffer: Tensor | memoryview | bytearray | mmap, num_bytes: int, device: torch.device
) -> Tensor:
    if not isinstance(buffer, Tensor):
        buffer = torch.frombuffer(buffer, dtype=torch.uint8)
    if buffer.device.type != device.type:
        raise ValueError(f"a KV buffer on '{buffer.device}' cannot serve the device '{device}'")
    if len(buffer) < num_bytes:
        raise ValueError(f"the KV buffer has {len(buffer)} bytes, not {num_bytes}")
    return buffer[:num_bytes]
