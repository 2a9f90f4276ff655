"""The tensors of a decoder as a checkpoint names them, and which of them are one matrix here: for
whoever checks files, times products or reads weights. Knows no torch.
"""

from dataclasses import dataclass

from engine.model_spec import ModelSpec

EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
INPUT_NORM, MLP_NORM = "input_layernorm.weight", "post_attention_layernorm.weight"
QUERY_NORM, KEY_NORM = "self_attn.q_norm.weight", "self_attn.k_norm.weight"


@dataclass(frozen=True, slots=True)
class Fused:
    """Matrices of a layer that read the same input: one product, their outputs end to end."""

    num_outputs: dict[str, int]  # by name
    num_inputs: int
    has_bias: bool

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of it."""
        weights = {
            f"{name}.weight": (num, self.num_inputs) for name, num in self.num_outputs.items()
        }
        biases = {f"{name}.bias": (num,) for name, num in self.num_outputs.items()}
        return {**weights, **biases} if self.has_bias else {**weights}


def layer_tensor(layer: int, name: str) -> str:
    return f"model.layers.{layer}.{name}"


def qkv(spec: ModelSpec) -> Fused:
    query, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    outputs = {"self_attn.q_proj": query, "self_attn.k_proj": keys, "self_attn.v_proj": keys}
    return Fused(outputs, spec.hidden_size, spec.has_qkv_bias)


def attention_output(spec: ModelSpec) -> Fused:
    outputs = {"self_attn.o_proj": spec.hidden_size}
    return Fused(outputs, spec.num_heads * spec.head_dim, spec.has_output_bias)


def gate_up(spec: ModelSpec) -> Fused:
    inner = spec.intermediate_size
    outputs = {"mlp.gate_proj": inner, "mlp.up_proj": inner}
    return Fused(outputs, spec.hidden_size, spec.has_mlp_bias)


def down(spec: ModelSpec) -> Fused:
    return Fused({"mlp.down_proj": spec.hidden_size}, spec.intermediate_size, spec.has_mlp_bias)


def layer_matrices(spec: ModelSpec) -> tuple[Fused, ...]:
    return qkv(spec), attention_output(spec), gate_up(spec), down(spec)


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model, by its name in the checkpoint."""
    hidden = (spec.hidden_size,)
    shapes: dict[str, tuple[int, ...]] = {
        EMBEDDING: (spec.vocab_size, spec.hidden_size),
        FINAL_NORM: hidden,
    }
    if not spec.is_tied:
        shapes[HEAD] = shapes[EMBEDDING]
    layer_shapes: dict[str, tuple[int, ...]] = {INPUT_NORM: hidden, MLP_NORM: hidden}
    for matrix in layer_matrices(spec):
        layer_shapes |= matrix.shapes
    if spec.has_qk_norm:
        layer_shapes |= dict.fromkeys((QUERY_NORM, KEY_NORM), (spec.head_dim,))
    for layer in range(spec.num_layers):
        shapes |= {layer_tensor(layer, name): shape for name, shape in layer_shapes.items()}
    return shapes
