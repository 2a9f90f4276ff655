"""A gated MLP as a layer of a decoder."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import silu

from engine import tensors
from engine.layers.linear import Linear
from engine.layers.weights import WeightReader
from engine.model_spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedMlp:
    norm: Tensor
    norm_eps: float
    gate_up: Linear
    down: Linear

    def added_to(self, hidden: Tensor) -> Tensor:
        x = torch.rms_norm(hidden, hidden.shape[-1:], self.norm, self.norm_eps)
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down.added_to(hidden, silu(gate).mul_(up))


def read_gated_mlp(weights: WeightReader, spec: ModelSpec, layer: int) -> GatedMlp:
    return GatedMlp(
        norm=weights.layer_tensor(layer, tensors.MLP_NORM),
        norm_eps=spec.rms_norm_eps,
        gate_up=weights.linear(*weights.fused(layer, tensors.gate_up(spec))),
        down=weights.linear(*weights.fused(layer, tensors.down(spec))),
    )
