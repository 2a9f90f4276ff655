"""What the layers of a decoder compute between their products and attention: the seam, and its form
in torch, for any device. On a CPU it may be `engine/cpu_kernels/native_layer_ops.py`.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import embedding, silu

from engine.kv_cache import KvCache
from engine.layers.rope import Rope, rotate_in_place
from engine.model_spec import ModelSpec


class LayerOps(Protocol):
    """Computes for one model over its cache, for all rows of a step at once."""

    def embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        """[num_tokens, hidden_size]. *Raises* IndexError where the table has no such token."""

    def rotations(self, positions: Tensor) -> Tensor:
        """What `rotate` wants of these int64 positions [num_tokens], in a form of its own."""

    def norm(self, hidden: Tensor, added: Tensor | None, weight: Tensor) -> Tensor:
        """Adds `added` to `hidden` [num_tokens, hidden_size], in place, and returns that normed."""

    def rotate(
        self, layer: int, qkv: Tensor, norms: Tensor | None, rotations: Tensor, slots: Tensor
    ) -> None:
        """Norms, where there are `norms` [num_heads + num_kv_heads, head_dim], and rotates the
        heads of q and k in `qkv` [num_tokens, num_heads + 2 * num_kv_heads, head_dim], in place;
        K and V are in the layer's cache afterwards."""

    def gate(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up [num_tokens, size], of both side by side."""


class TorchLayerOps:
    def __init__(self, spec: ModelSpec, cache: KvCache) -> None:
        self._spec = spec
        self._cache = cache
        self._rope = Rope(spec, cache.device)

    def embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        return embedding(token_ids, table)

    def rotations(self, positions: Tensor) -> Tensor:
        return self._rope.rotations(positions)

    def norm(self, hidden: Tensor, added: Tensor | None, weight: Tensor) -> Tensor:
        if added is not None:
            hidden.add_(added)
        return torch.rms_norm(hidden, hidden.shape[-1:], weight, self._spec.rms_norm_eps)

    def rotate(
        self, layer: int, qkv: Tensor, norms: Tensor | None, rotations: Tensor, slots: Tensor
    ) -> None:
        spec = self._spec
        rotated = qkv[:, : spec.num_heads + spec.num_kv_heads]
        if norms is not None:
            normed = torch.rms_norm(rotated, (spec.head_dim,), None, spec.rms_norm_eps)
            torch.mul(normed, norms, out=rotated)
        rotate_in_place(rotated, rotations)
        keys_values = qkv[:, spec.num_heads :].view(len(qkv), -1, spec.num_kv_heads, spec.head_dim)
        self._cache.write(layer, slots, keys_values)

    def gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return silu(gate).mul_(up)
