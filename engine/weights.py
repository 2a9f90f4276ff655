"""The weights of a model as the engine computes with them: cast, fused, stored for their products.

Read through a memory map, tensor by tensor, so that little more than the result is resident.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cluster.errors import CheckpointError
from cluster.measurements import Measurements
from engine.checkpoint import EMBEDDING, HEAD, StoredTensor, stored_tensors
from engine.linear import Choice, Linear, Product, make_linear, uniform
from engine.model_spec import ModelSpec
from engine.products import Shape, choose_products
from engine.rope import interleaved_order

# Second copies of matrices, where two products are worth one each, may take so much memory.
_SECOND_COPY_BYTES = 1 << 30

Choices = Mapping[Shape, Choice]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    input_norm: Tensor
    qkv: Linear  # heads of q, k, v; q and k interleaved for `rope`, q scaled for `attention`
    qk_norm: Tensor | None  # [num_heads + num_kv_heads, head_dim], then q is scaled here
    output: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWeights:
    embedding: Tensor  # [vocab_size, hidden_size]
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    head: Linear


def load_weights(
    checkpoint: Path,
    spec: ModelSpec,
    measurements: Measurements,
    *,
    dtype: torch.dtype,
    device: torch.device,
    pinned: Product | None = None,
) -> ModelWeights:
    """Stored for the products that are fastest here, or for the `pinned` one.

    *Raises* CheckpointError where the files are not exactly those of `spec`.
    """
    tensors = _MappedTensors(stored_tensors(checkpoint, spec), dtype, device)
    shapes = matrix_shapes(spec)
    choices = (
        dict.fromkeys(shapes, uniform(pinned))
        if pinned
        else choose_products(
            shapes,
            measurements,
            dtype=dtype,
            device=device,
            may_keep_two=spec.num_parameters * dtype.itemsize <= _SECOND_COPY_BYTES,
        )
    )
    embedding, head = _ends(tensors)
    return ModelWeights(
        embedding=embedding,
        layers=tuple(
            _load_layer(tensors, choices, spec, layer) for layer in range(spec.num_layers)
        ),
        final_norm=tensors.get("model.norm.weight"),
        head=make_linear(head, None, choices[_head_shape(spec)]),
    )


def matrix_shapes(spec: ModelSpec) -> Counter[Shape]:
    """How many matrices of each shape a model multiplies by."""
    heads, hidden, inner = spec.num_heads, spec.hidden_size, spec.intermediate_size
    layer = (
        Shape((heads + 2 * spec.num_kv_heads) * spec.head_dim, hidden),
        Shape(hidden, heads * spec.head_dim),
        Shape(2 * inner, hidden),
        Shape(hidden, inner),
    )
    return Counter([*layer * spec.num_layers, _head_shape(spec)])


def _head_shape(spec: ModelSpec) -> Shape:
    """A tied one is the embedding itself where that is fast enough."""
    return Shape(spec.vocab_size, spec.hidden_size, is_kept=spec.is_tied)


class _MappedTensors:
    def __init__(
        self, stored: dict[str, StoredTensor], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._files: dict[Path, Any] = {}
        for file in {tensor.file for tensor in stored.values()}:
            try:
                self._files[file] = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{file} cannot be read as safetensors ({error}): download or copy it again."
                ) from error
        self._stored = stored
        self._dtype = dtype
        self._device = device

    def has(self, name: str) -> bool:
        return name in self._stored

    def get(self, name: str) -> Tensor:
        tensor: Tensor = self._files[self._stored[name].file].get_tensor(name)
        # A copy even where nothing is cast: the mapped file may change or go away.
        return tensor.to(device=self._device, dtype=self._dtype, copy=True)

    def fused(self, prefix: str, names: tuple[str, ...], kind: str) -> Tensor:
        return torch.cat([self.get(f"{prefix}.{name}.{kind}") for name in names])


def _ends(tensors: _MappedTensors) -> tuple[Tensor, Tensor]:
    """The embedding and the head: one tensor where the files hold one, or the same twice. The
    weights are believed, whatever the configuration says of tying."""
    embedding = tensors.get(EMBEDDING if tensors.has(EMBEDDING) else HEAD)
    if not (tensors.has(EMBEDDING) and tensors.has(HEAD)):
        return embedding, embedding
    head = tensors.get(HEAD)
    return embedding, embedding if torch.equal(head, embedding) else head


def _load_layer(
    tensors: _MappedTensors, choices: Choices, spec: ModelSpec, layer: int
) -> LayerWeights:
    prefix = f"model.layers.{layer}"

    def linear(part: str, *names: str) -> Linear:
        weight = tensors.fused(f"{prefix}.{part}", names, "weight")
        bias = _bias(tensors, f"{prefix}.{part}", names)
        return make_linear(weight, bias, choices[Shape(*weight.shape)])

    return LayerWeights(
        input_norm=tensors.get(f"{prefix}.input_layernorm.weight"),
        qkv=_qkv(tensors, choices, spec, f"{prefix}.self_attn"),
        qk_norm=_qk_norm(tensors, spec, f"{prefix}.self_attn") if spec.has_qk_norm else None,
        output=linear("self_attn", "o_proj"),
        mlp_norm=tensors.get(f"{prefix}.post_attention_layernorm.weight"),
        gate_up=linear("mlp", "gate_proj", "up_proj"),
        down=linear("mlp", "down_proj"),
    )


def _bias(tensors: _MappedTensors, prefix: str, names: tuple[str, ...]) -> Tensor | None:
    has_bias = tensors.has(f"{prefix}.{names[0]}.bias")
    return tensors.fused(prefix, names, "bias") if has_bias else None


def _qkv(tensors: _MappedTensors, choices: Choices, spec: ModelSpec, prefix: str) -> Linear:
    names = ("q_proj", "k_proj", "v_proj")
    order = _qkv_order(spec)
    weight = tensors.fused(prefix, names, "weight")[order]
    bias = _bias(tensors, prefix, names)
    if bias is not None:
        bias = bias[order]
    if not spec.has_qk_norm:  # which would undo it
        num_query_rows = spec.num_heads * spec.head_dim
        weight[:num_query_rows] *= spec.head_dim**-0.5
        if bias is not None:
            bias[:num_query_rows] *= spec.head_dim**-0.5
    return make_linear(weight, bias, choices[Shape(*weight.shape)])


def _qkv_order(spec: ModelSpec) -> Tensor:
    """Row of the fused projection -> row in the checkpoint's q, k and v laid end to end."""
    num_rotated = spec.num_heads + spec.num_kv_heads
    heads = torch.arange(num_rotated + spec.num_kv_heads)[:, None] * spec.head_dim
    within = torch.arange(spec.head_dim).repeat(len(heads), 1)
    within[:num_rotated] = interleaved_order(spec.head_dim)
    return (heads + within).reshape(-1)


def _qk_norm(tensors: _MappedTensors, spec: ModelSpec, prefix: str) -> Tensor:
    order = interleaved_order(spec.head_dim)
    query = tensors.get(f"{prefix}.q_norm.weight")[order] * spec.head_dim**-0.5
    key = tensors.get(f"{prefix}.k_norm.weight")[order]
    return torch.cat([query.expand(spec.num_heads, -1), key.expand(spec.num_kv_heads, -1)])
