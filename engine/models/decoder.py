"""The decoder that Llama, Qwen2, Qwen3 and Mistral share: hidden states and logits for a step.

Knows tensors; neither sequences nor sampling, nor how attention reads the cache. What differs
between the families is data: which weights exist, and the window of each layer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from engine.attention import Attention, StepPlan
from engine.kv_cache import KvCache
from engine.layer_ops import LayerOps
from engine.layers.gated_mlp import GatedMlp, read_gated_mlp
from engine.layers.self_attention import SelfAttention, read_self_attention
from engine.layers.weights import WeightReader
from engine.model_spec import ModelSpec
from engine.tensors import FINAL_NORM


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedTokens:
    """The tokens of a step whose hidden state is asked for, where that is not all."""

    tokens: Tensor  # int64 [num_wanted], increasing
    plan: StepPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """One step's tokens, rows end to end."""

    token_ids: Tensor  # int64 [num_tokens]
    positions: Tensor  # int64 [num_tokens]
    slots: Tensor  # int64 [num_tokens]
    plan: StepPlan
    wanted: WantedTokens | None  # None: all


class DecoderLayer(NamedTuple):
    attention: SelfAttention
    mlp: GatedMlp


class Decoder:
    def __init__(
        self,
        spec: ModelSpec,
        weights: WeightReader,
        cache: KvCache,
        attention: Attention,
        ops: LayerOps,
    ) -> None:
        self._embedding, self._head = weights.ends()
        self._layers = [
            DecoderLayer(
                read_self_attention(weights, spec, layer, cache, attention, ops),
                read_gated_mlp(weights, spec, layer, ops),
            )
            for layer in range(spec.num_layers)
        ]
        self._final_norm = weights.tensor(FINAL_NORM)
        self._ops = ops

    def forward(self, inputs: StepInputs, layer_done: Callable[[int], None]) -> Tensor:
        """Normed [num_wanted, hidden_size]; K and V of every token are in the cache afterwards.

        `layer_done(layer)` follows the cache write of that layer at once. The last layer
        computes K and V for all tokens, and everything else only for the wanted ones.
        """
        hidden = self._ops.embed(inputs.token_ids, self._embedding)
        added: Tensor | None = None  # to `hidden`, with the next norm
        rotations = self._ops.rotations(inputs.positions)
        plan, last = inputs.plan, len(self._layers) - 1
        for index, layer in enumerate(self._layers):
            qkv = layer.attention.store(hidden, added, rotations, inputs.slots)
            layer_done(index)
            if index == last and inputs.wanted is not None:
                hidden, qkv = hidden[inputs.wanted.tokens], qkv[inputs.wanted.tokens]
                plan = inputs.wanted.plan
            if not len(hidden):
                return hidden
            added = layer.mlp(hidden, layer.attention(qkv, plan))
        return self._ops.norm(hidden, added, self._final_norm)

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [num_tokens, vocab_size] of what `forward` gives."""
        return self._head(hidden).float()
