"""Self-attention as a layer of a decoder: its products around the cache and around who attends."""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine import tensors
from engine.attention import Attention, StepPlan
from engine.kv_cache import KvCache
from engine.layer_ops import LayerOps
from engine.layers.linear import Linear
from engine.layers.rope import interleaved_order
from engine.layers.weights import WeightReader
from engine.model_spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfAttention:
    """Attends in one layer, whose K and V lie in its part of the cache."""

    layer: int
    spec: ModelSpec
    norm: Tensor
    qkv: Linear  # heads of q, k, v; q and k interleaved for the rotation, q scaled
    qk_norm: Tensor | None  # [num_heads + num_kv_heads, head_dim], then q is scaled here
    output: Linear
    cache: KvCache
    attention: Attention
    ops: LayerOps

    def store(
        self, hidden: Tensor, added: Tensor | None, rotations: Tensor, slots: Tensor
    ) -> Tensor:
        """Rotated [num_tokens, num_heads + 2 * num_kv_heads, head_dim]: q, then k, then v; of which
        K and V are in the cache afterwards, and `added` a part of `hidden`."""
        x = self.ops.norm(hidden, added, self.norm)
        qkv = self.qkv(x).view(hidden.shape[0], -1, self.spec.head_dim)
        self.ops.rotate(self.layer, qkv, self.qk_norm, rotations, slots)
        return qkv

    def __call__(self, qkv: Tensor, plan: StepPlan) -> Tensor:
        """What is to be added to the hidden states of these tokens."""
        attended = self.attention.attend(self.layer, plan, qkv, self.cache.layers[self.layer])
        return self.output(attended)


def read_self_attention(
    weights: WeightReader,
    spec: ModelSpec,
    layer: int,
    cache: KvCache,
    attention: Attention,
    ops: LayerOps,
) -> SelfAttention:
    return SelfAttention(
        layer=layer,
        spec=spec,
        norm=weights.layer_tensor(layer, tensors.INPUT_NORM),
        qkv=_qkv(weights, spec, layer),
        qk_norm=_qk_norm(weights, spec, layer) if spec.has_qk_norm else None,
        output=weights.linear(*weights.fused(layer, tensors.attention_output(spec))),
        cache=cache,
        attention=attention,
        ops=ops,
    )


def _qkv(weights: WeightReader, spec: ModelSpec, layer: int) -> Linear:
    order = _qkv_order(spec)
    weight, bias = weights.fused(layer, tensors.qkv(spec))
    weight = weight[order]
    if bias is not None:
        bias = bias[order]
    if not spec.has_qk_norm:  # which would undo it
        num_query_rows = spec.num_heads * spec.head_dim
        weight[:num_query_rows] *= spec.head_dim**-0.5
        if bias is not None:
            bias[:num_query_rows] *= spec.head_dim**-0.5
    return weights.linear(weight, bias)


def _qkv_order(spec: ModelSpec) -> Tensor:
    """Row of the fused projection -> row in the checkpoint's q, k and v laid end to end."""
    num_rotated = spec.num_heads + spec.num_kv_heads
    heads = torch.arange(num_rotated + spec.num_kv_heads)[:, None] * spec.head_dim
    within = torch.arange(spec.head_dim).repeat(len(heads), 1)
    within[:num_rotated] = interleaved_order(spec.head_dim)
    return (heads + within).reshape(-1)


def _qk_norm(weights: WeightReader, spec: ModelSpec, layer: int) -> Tensor:
    order = interleaved_order(spec.head_dim)
    query = weights.layer_tensor(layer, tensors.QUERY_NORM)[order] * spec.head_dim**-0.5
    key = weights.layer_tensor(layer, tensors.KEY_NORM)[order]
    return torch.cat([query.expand(spec.num_heads, -1), key.expand(spec.num_kv_heads, -1)])
