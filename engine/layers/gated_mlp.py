"""A gated MLP as a layer of a decoder."""

from dataclasses import dataclass

from torch import Tensor

from engine import tensors
from engine.layer_ops import LayerOps
from engine.layers.linear import Linear
from engine.layers.weights import WeightReader
from engine.model_spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedMlp:
    norm: Tensor
    gate_up: Linear
    down: Linear
    ops: LayerOps

    def __call__(self, hidden: Tensor, added: Tensor) -> Tensor:
        """What is to be added to `hidden` next, of which `added` is a part afterwards."""
        x = self.ops.norm(hidden, added, self.norm)
        return self.down(self.ops.gate(self.gate_up(x)))


def read_gated_mlp(weights: WeightReader, spec: ModelSpec, layer: int, ops: LayerOps) -> GatedMlp:
    return GatedMlp(
        norm=weights.layer_tensor(layer, tensors.MLP_NORM),
        gate_up=weights.linear(*weights.fused(layer, tensors.gate_up(spec))),
        down=weights.linear(*weights.fused(layer, tensors.down(spec))),
        ops=ops,
    )
