"""A checkpoint's weights as the engine computes with them: cast, fused, stored for their products.

Read through a memory map, tensor by tensor, so that little more than the result is resident.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cluster.errors import CheckpointError
from cluster.measurements import Measurements
from engine.checkpoint import StoredTensor, stored_tensors
from engine.config import EngineConfig
from engine.kv_cache import DTYPES
from engine.layers.linear import Linear, make_linear, uniform
from engine.layers.narrow import make_narrow, told
from engine.layers.products import Shape, choose_products
from engine.model_spec import ModelSpec
from engine.tensors import EMBEDDING, HEAD, Fused, layer_matrices, layer_tensor

# Second copies of matrices, where two products are worth one each, may take so much memory.
_SECOND_COPY_BYTES = 1 << 30


def matrix_shapes(spec: ModelSpec) -> Counter[Shape]:
    """Counts the matrices of each shape that a model multiplies by."""
    fused = (Shape(sum(m.num_outputs.values()), m.num_inputs) for m in layer_matrices(spec))
    return Counter([*fused] * spec.num_layers + [_head_shape(spec)])


def _head_shape(spec: ModelSpec) -> Shape:
    """A tied one is the embedding itself where that is fast enough."""
    return Shape(spec.vocab_size, spec.hidden_size, is_kept=spec.is_tied)


class WeightReader:
    """Reads for the products that are fastest here, or for the one that is told."""

    def __init__(self, config: EngineConfig, spec: ModelSpec, measurements: Measurements) -> None:
        """*Raises* CheckpointError where the files are not exactly those of `spec`."""
        self._stored = stored_tensors(config.checkpoint, spec)
        self._files = _opened(self._stored)
        self._spec = spec
        self._dtype = DTYPES[config.dtype]
        self._device = torch.device(config.device)
        self._kept = config.weights
        if config.weights != "float32":
            measurements.choices["weights"] = told(config.weights)
            return
        shapes = matrix_shapes(spec)
        self._choices = (
            dict.fromkeys(shapes, uniform(config.product))
            if config.product
            else choose_products(
                shapes,
                measurements,
                dtype=self._dtype,
                device=self._device,
                may_keep_two=spec.num_parameters * self._dtype.itemsize <= _SECOND_COPY_BYTES,
            )
        )

    def tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._files[self._stored[name].file].get_tensor(name)
        # A copy even where nothing is cast: the mapped file may change or go away.
        return tensor.to(device=self._device, dtype=self._dtype, copy=True)

    def layer_tensor(self, layer: int, name: str) -> Tensor:
        return self.tensor(layer_tensor(layer, name))

    def fused(self, layer: int, matrix: Fused) -> tuple[Tensor, Tensor | None]:
        """Weight and bias."""
        weight = self._joined(layer, matrix, "weight")
        return weight, self._joined(layer, matrix, "bias") if matrix.has_bias else None

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        return self._stored_as(Shape(*weight.shape), weight, bias)

    def ends(self) -> tuple[Tensor, Linear]:
        """The embedding and the head: one tensor where the files hold one, or the same twice. The
        weights are believed, whatever the configuration says of tying."""
        names = [name for name in (EMBEDDING, HEAD) if name in self._stored]
        embedding = head = self.tensor(names[0])
        if len(names) == 2 and not torch.equal(other := self.tensor(HEAD), embedding):
            head = other
        return embedding, self._stored_as(_head_shape(self._spec), head, None)

    def _stored_as(self, shape: Shape, weight: Tensor, bias: Tensor | None) -> Linear:
        if self._kept != "float32":
            return make_narrow(weight, bias, self._kept)
        return make_linear(weight, bias, self._choices[shape])

    def _joined(self, layer: int, matrix: Fused, kind: str) -> Tensor:
        return torch.cat(
            [self.layer_tensor(layer, f"{name}.{kind}") for name in matrix.num_outputs]
        )


def _opened(stored: Mapping[str, StoredTensor]) -> dict[Path, Any]:
    files: dict[Path, Any] = {}
    for file in {tensor.file for tensor in stored.values()}:
        try:
            files[file] = safe_open(file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file} cannot be read as safetensors ({error}): download or copy it again."
            ) from error
    return files
