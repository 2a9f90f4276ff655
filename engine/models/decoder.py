"""The decoder that Llama, Qwen2, Qwen3 and Mistral share: hidden states and logits for a step.

Knows tensors; neither sequences nor sampling, nor how attention reads the cache. What differs
between the families is data: which weights exist, and the window of each layer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding, silu

from engine.attention import Attention, StepPlan
from engine.kv_cache import KvCache
from engine.model_spec import ModelSpec
from engine.rope import Rope, rotate_in_place
from engine.weights import LayerWeights, ModelWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """One step's tokens, rows end to end. `wanted` are those whose hidden state is asked for."""

    token_ids: Tensor  # int64 [num_tokens]
    positions: Tensor  # int64 [num_tokens]
    slots: Tensor  # int64 [num_tokens]
    plan: StepPlan  # every token
    wanted: Tensor  # int64 [num_wanted], increasing
    wanted_plan: StepPlan  # the wanted tokens; None: all are


class Decoder:
    def __init__(
        self, spec: ModelSpec, weights: ModelWeights, cache: KvCache, attention: Attention
    ) -> None:
        self._spec = spec
        self._weights = weights
        self._cache = cache
        self._attention = attention
        self._rope = Rope(spec, weights.embedding.device)

    def forward(self, inputs: StepInputs, layer_done: Callable[[int], None]) -> Tensor:
        """[num_wanted, hidden_size]; K and V of every token are in the cache afterwards.

        `layer_done(layer)` follows the cache write of that layer at once. The last layer
        computes K and V for all tokens, and everything else only for the wanted ones.
        """
        hidden = embedding(inputs.token_ids, self._weights.embedding)
        rotations = self._rope.rotations(inputs.positions)
        last = self._spec.num_layers - 1
        for index, layer in enumerate(self._weights.layers):
            qkv = self._project(layer, hidden, rotations)
            self._cache.write(index, inputs.slots, self._keys_values(qkv))
            layer_done(index)
            plan = inputs.plan
            if index == last and inputs.wanted_plan is not None:
                hidden, qkv = hidden[inputs.wanted], qkv[inputs.wanted]
                plan = inputs.wanted_plan
            if len(hidden):
                hidden = self._finish_layer(index, layer, hidden, qkv, plan)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [num_tokens, vocab_size]"""
        x = torch.rms_norm(
            hidden, hidden.shape[-1:], self._weights.final_norm, self._spec.rms_norm_eps
        )
        return self._weights.head(x).float()

    def _project(self, layer: LayerWeights, hidden: Tensor, rotations: Tensor) -> Tensor:
        """Rotated [num_tokens, num_heads + 2 * num_kv_heads, head_dim]: q, then k, then v."""
        spec = self._spec
        x = torch.rms_norm(hidden, hidden.shape[-1:], layer.input_norm, spec.rms_norm_eps)
        qkv = layer.qkv(x).view(hidden.shape[0], -1, spec.head_dim)
        rotated = qkv[:, : spec.num_heads + spec.num_kv_heads]
        if layer.qk_norm is not None:
            normed = torch.rms_norm(rotated, (spec.head_dim,), None, spec.rms_norm_eps)
            torch.mul(normed, layer.qk_norm, out=rotated)
        rotate_in_place(rotated, rotations)
        return qkv

    def _keys_values(self, qkv: Tensor) -> Tensor:
        spec = self._spec
        return qkv[:, spec.num_heads :].view(len(qkv), 2, spec.num_kv_heads, spec.head_dim)

    def _finish_layer(
        self,
        index: int,
        layer: LayerWeights,
        hidden: Tensor,
        qkv: Tensor,
        plan: StepPlan,
    ) -> Tensor:
        """Attention and MLP, each added to the residual."""
        eps = self._spec.rms_norm_eps
        attended = self._attention.attend(index, plan, qkv, self._cache.layers[index])
        hidden = layer.output.added_to(hidden, attended)
        x = torch.rms_norm(hidden, hidden.shape[-1:], layer.mlp_norm, eps)
        gate, up = layer.gate_up(x).chunk(2, dim=-1)
        return layer.down.added_to(hidden, silu(gate).mul_(up))
