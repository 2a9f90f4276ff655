"""Reads, strictly, what all families of decoders have in common in a config.json. No torch.

What would change the model's output and is not supported is refused by name, never ignored.
"""

from collections.abc import Callable

from cluster.checkpoint_config import context_length, rope_kind, rope_of
from cluster.checkpoint_keys import ROPE_KINDS
from engine.model_spec import ModelSpec, RopeKind, RopeSpec
from engine.models.config_reader import ConfigReader, parse_token_ids

Windows = tuple[int | None, ...]


def decoder_spec(
    config: ConfigReader,
    family: str,
    *,
    windows: Windows,
    has_qkv_bias: bool = False,
    has_output_bias: bool = False,
    has_mlp_bias: bool = False,
    has_qk_norm: bool = False,
) -> ModelSpec:
    """*Raises* CheckpointError where the model is not one that the engine computes exactly."""
    _check_activation(config)
    num_heads = config.integer("num_attention_heads")
    return ModelSpec(
        family=family,
        num_layers=config.integer("num_hidden_layers"),
        hidden_size=config.integer("hidden_size"),
        intermediate_size=config.integer("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(config, num_heads),
        head_dim=_head_dim(config, num_heads),
        vocab_size=config.integer("vocab_size"),
        context_length=context_length(config.values, config.source),
        rms_norm_eps=config.number("rms_norm_eps"),
        rope=_rope(config),
        windows=windows,
        is_tied=config.flag("tie_word_embeddings"),
        has_qkv_bias=has_qkv_bias,
        has_output_bias=has_output_bias,
        has_mlp_bias=has_mlp_bias,
        has_qk_norm=has_qk_norm,
        end_token_ids=parse_token_ids(config, "eos_token_id"),
    )


def layer_windows(
    config: ConfigReader, has_windows: Callable[[], bool], is_windowed: Callable[[int], bool]
) -> Windows:
    """Says how many tokens each layer sees: `is_windowed` says of a layer whether it has a window,
    where 'layer_types' does not; `has_windows`, whether the model can have one."""
    num_layers = config.integer("num_hidden_layers")
    windowed = _typed_layers(config, num_layers)
    if windowed is None:
        is_given = config.get("sliding_window") is not None
        windowed = [is_given and is_windowed(layer) for layer in range(num_layers)]
    if not any(windowed):
        return (None,) * num_layers
    if not has_windows() or config.get("sliding_window") is None:
        raise config.refuse("'layer_types' has sliding attention, but there is no window for it.")
    window = config.integer("sliding_window")
    return tuple(window if each else None for each in windowed)


_LAYER_TYPES = {"sliding_attention": True, "full_attention": False, "attention": False}


def _typed_layers(config: ConfigReader, num_layers: int) -> list[bool] | None:
    types = config.get("layer_types")
    if types is None:
        return None
    if not isinstance(types, list) or len(types) != num_layers:
        raise config.wrong("layer_types", types, f"a list of {num_layers}")
    if unknown := [each for each in types if each not in _LAYER_TYPES]:
        raise config.wrong("layer_types", unknown[0], f"of {sorted(_LAYER_TYPES)}")
    return [_LAYER_TYPES[each] for each in types]


def _check_activation(config: ConfigReader) -> None:
    if (activation := config.get("hidden_act")) not in ("silu", "swish"):
        raise config.refuse(f"'hidden_act' {activation!r} is not supported, only 'silu'.")


def _num_kv_heads(config: ConfigReader, num_heads: int) -> int:
    num_kv_heads = config.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise config.refuse(
            f"{num_heads} attention heads cannot share {num_kv_heads} key-value heads evenly: "
            "'num_attention_heads' must be a multiple of 'num_key_value_heads'."
        )
    return num_kv_heads


def _head_dim(config: ConfigReader, num_heads: int) -> int:
    hidden_size = config.integer("hidden_size")
    if config.get("head_dim") is None and hidden_size % num_heads:
        raise config.refuse(
            f"'hidden_size' {hidden_size} is not a multiple of 'num_attention_heads' "
            f"{num_heads}, and there is no 'head_dim'."
        )
    head_dim = config.integer("head_dim", hidden_size // num_heads)
    if head_dim % 2:
        raise config.refuse(f"rotary embeddings need an even 'head_dim', not {head_dim}.")
    return head_dim


def _rope(config: ConfigReader) -> RopeSpec:
    default_theta = config.number("rope_theta")
    if not rope_of(config.values):
        return RopeSpec(theta=default_theta)
    rope = config.nested("rope_scaling" if config.get("rope_scaling") else "rope_parameters")
    kind = rope_kind(rope.values)
    if kind not in ROPE_KINDS:
        raise rope.refuse(
            f"the rotary type {kind!r} is not supported. Supported: {', '.join(ROPE_KINDS)}."
        )
    theta = rope.number("rope_theta", default_theta)
    if kind in ("default", "dynamic"):
        # NTK scaling by length starts beyond the context length, which is never served.
        return RopeSpec(theta=theta)
    return _scaled_rope(config, rope, RopeKind(kind), theta)


def _scaled_rope(
    config: ConfigReader, rope: ConfigReader, kind: RopeKind, theta: float
) -> RopeSpec:
    context_length = config.integer("max_position_embeddings")
    outer = config.get("original_max_position_embeddings")
    original = outer or rope.integer("original_max_position_embeddings", context_length)
    is_llama3 = kind is RopeKind.LLAMA3
    return RopeSpec(
        kind=kind,
        theta=theta,
        factor=rope.number("factor", context_length / original if kind is RopeKind.YARN else None),
        original_context=original,
        low_freq_factor=rope.number("low_freq_factor", None if is_llama3 else 1.0),
        high_freq_factor=rope.number("high_freq_factor", None if is_llama3 else 1.0),
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        attention_factor=rope.optional_number("attention_factor"),
        mscale=rope.optional_number("mscale"),
        mscale_all_dim=rope.optional_number("mscale_all_dim"),
        truncate=rope.flag("truncate", True),
    )
