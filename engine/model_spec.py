"""The geometry of a model, read strictly from a checkpoint's config.json. Knows no torch and no
weights.

What would change the model's output and is not supported is refused by name, never ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cluster.errors import CheckpointError
from cluster.types import KvLayout


class Architecture(StrEnum):
    LLAMA = "LlamaForCausalLM"
    QWEN2 = "Qwen2ForCausalLM"
    QWEN3 = "Qwen3ForCausalLM"
    MISTRAL = "MistralForCausalLM"


class RopeKind(StrEnum):
    DEFAULT = "default"
    LINEAR = "linear"
    LLAMA3 = "llama3"
    YARN = "yarn"


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """Rotary frequencies: `kind` says which of the fields count."""

    kind: RopeKind = RopeKind.DEFAULT
    theta: float = 10_000.0
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    architecture: Architecture
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    rms_norm_eps: float
    rope: RopeSpec
    windows: tuple[int | None, ...]  # by layer: how many tokens it sees, itself included
    is_tied: bool  # the output head is the embedding
    has_qkv_bias: bool
    has_output_bias: bool
    has_mlp_bias: bool
    has_qk_norm: bool
    end_token_ids: tuple[int, ...] = ()

    def kv_layout(self, *, num_blocks: int, block_size: int, dtype: str = "float32") -> KvLayout:
        """Geometry of a KV pool for this model."""
        return KvLayout(
            num_layers=self.num_layers,
            num_blocks=num_blocks,
            block_size=block_size,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            dtype=dtype,
            windows=self.windows if any(self.windows) else (),
        )

    @property
    def num_parameters(self) -> int:
        attention = (2 * self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        layer = self.hidden_size * (attention + 3 * self.intermediate_size)
        return self.num_layers * layer + self.vocab_size * self.hidden_size * (2 - self.is_tied)


class ConfigReader:
    """Typed reads from config.json; each mistake is a sentence with the key and its value."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self._values = values
        self._source = source

    def get(self, key: str) -> Any:
        return self._values.get(key)

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._values.get(key)
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.wrong(key, value, "a positive integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._values.get(key)
        if value is None:
            value = default
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise self.wrong(key, value, "a positive number")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        return None if self._values.get(key) is None else self.number(key)

    def flag(self, key: str, default: bool) -> bool:
        value = self._values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def nested(self, key: str) -> "ConfigReader":
        value = self._values.get(key)
        if not isinstance(value, dict):
            raise self.wrong(key, value, "an object")
        return ConfigReader(value, f"'{key}' in {self._source}")

    def keys(self) -> set[str]:
        return set(self._values)

    def wrong(self, key: str, value: Any, wanted: str) -> CheckpointError:
        return CheckpointError(
            f"'{key}' in {self._source} must be {wanted}, not {value!r}: check that the "
            "checkpoint is complete and of a supported family."
        )

    def refuse(self, sentence: str) -> CheckpointError:
        return CheckpointError(f"{self._source}: {sentence}")


def parse_model_spec(
    values: Mapping[str, Any], source: str, end_token_ids: tuple[int, ...] = ()
) -> ModelSpec:
    """*Raises* CheckpointError where the model is not one that the engine computes exactly."""
    config = ConfigReader(values, source)
    architecture = _architecture(config)
    _refuse_unsupported(config)
    num_layers = config.integer("num_hidden_layers")
    num_heads = config.integer("num_attention_heads")
    num_kv_heads = _num_kv_heads(config, architecture, num_heads)
    attention_bias = config.flag("attention_bias", False)
    has_bias_flag = architecture in (Architecture.LLAMA, Architecture.QWEN3)
    return ModelSpec(
        architecture=architecture,
        num_layers=num_layers,
        hidden_size=config.integer("hidden_size"),
        intermediate_size=config.integer("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_head_dim(config, architecture, num_heads),
        vocab_size=config.integer("vocab_size"),
        context_length=config.integer("max_position_embeddings"),
        rms_norm_eps=config.number("rms_norm_eps", 1e-6),
        rope=_rope(config),
        windows=_windows(config, architecture, num_layers),
        is_tied=config.flag("tie_word_embeddings", False),
        has_qkv_bias=architecture is Architecture.QWEN2 or (has_bias_flag and attention_bias),
        has_output_bias=has_bias_flag and attention_bias,
        has_mlp_bias=architecture is Architecture.LLAMA and config.flag("mlp_bias", False),
        has_qk_norm=architecture is Architecture.QWEN3,
        end_token_ids=end_token_ids or parse_token_ids(config, "eos_token_id"),
    )


def parse_token_ids(config: ConfigReader, key: str) -> tuple[int, ...]:
    value = config.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise config.wrong(key, value, "a token id or a list of token ids")
    return tuple(ids)


def _architecture(config: ConfigReader) -> Architecture:
    names = config.get("architectures")
    known = ", ".join(Architecture)
    if not isinstance(names, list) or len(names) != 1 or names[0] not in set(Architecture):
        raise config.refuse(
            f"the architecture {names!r} is not supported. Use a checkpoint of one of: {known}."
        )
    return Architecture(names[0])


def _refuse_unsupported(config: ConfigReader) -> None:
    if config.get("quantization_config") is not None:
        raise config.refuse(
            "quantised checkpoints ('quantization_config') are not supported yet. Use the "
            "original checkpoint in float32, bfloat16 or float16."
        )
    if (activation := config.get("hidden_act") or "silu") not in ("silu", "swish"):
        raise config.refuse(f"the activation {activation!r} is not supported, only 'silu'.")
    if (config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise config.refuse("'partial_rotary_factor' other than 1 is not supported.")


def _num_kv_heads(config: ConfigReader, architecture: Architecture, num_heads: int) -> int:
    # Only old Llama checkpoints leave it out, and mean multi-head attention.
    default = num_heads if architecture is Architecture.LLAMA else None
    num_kv_heads = config.integer("num_key_value_heads", default)
    if num_heads % num_kv_heads:
        raise config.refuse(
            f"{num_heads} attention heads cannot share {num_kv_heads} key-value heads evenly: "
            "'num_attention_heads' must be a multiple of 'num_key_value_heads'."
        )
    return num_kv_heads


def _head_dim(config: ConfigReader, architecture: Architecture, num_heads: int) -> int:
    hidden_size = config.integer("hidden_size")
    if config.get("head_dim") is None and architecture is not Architecture.QWEN3:
        if hidden_size % num_heads:
            raise config.refuse(
                f"'hidden_size' {hidden_size} is not a multiple of 'num_attention_heads' "
                f"{num_heads}, and there is no 'head_dim'."
            )
        head_dim = hidden_size // num_heads
    else:
        head_dim = config.integer("head_dim", 128)
    if head_dim % 2:
        raise config.refuse(f"rotary embeddings need an even 'head_dim', not {head_dim}.")
    return head_dim


def _windows(
    config: ConfigReader, architecture: Architecture, num_layers: int
) -> tuple[int | None, ...]:
    if architecture is Architecture.LLAMA or config.get("sliding_window") is None:
        return (None,) * num_layers
    window = config.integer("sliding_window")
    if architecture is Architecture.MISTRAL:
        return (window,) * num_layers
    if not config.flag("use_sliding_window", False):
        return (None,) * num_layers
    types = config.get("layer_types")
    if types is None:
        first = config.get("max_window_layers")
        first = 28 if first is None else first
        types = ["sliding_attention" if i >= first else "full_attention" for i in range(num_layers)]
    by_type = {"sliding_attention": window, "full_attention": None}
    if not isinstance(types, list) or len(types) != num_layers or not set(types) <= set(by_type):
        raise config.wrong("layer_types", types, f"{num_layers} of {sorted(by_type)}")
    return tuple(by_type[kind] for kind in types)


_ROPE_KEYS = {
    "default": set[str](),
    "linear": {"factor"},
    "dynamic": {"factor", "original_max_position_embeddings"},
    "llama3": {
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    },
    "yarn": {
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    },
}


def _rope(config: ConfigReader) -> RopeSpec:
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    default_theta = config.number("rope_theta", 10_000.0)
    if not config.get(key):
        return RopeSpec(theta=default_theta)
    rope = config.nested(key)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in _ROPE_KEYS:
        raise rope.refuse(
            f"the rotary type {kind!r} is not supported. Supported: {', '.join(_ROPE_KEYS)}."
        )
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    if unknown := {k for k in rope.keys() - known - _ROPE_KEYS[kind] if rope.get(k) is not None}:
        raise rope.refuse(f"keys that mean nothing for {kind!r}: {', '.join(sorted(unknown))}.")
    if (rope.get("partial_rotary_factor") or 1.0) != 1.0:
        raise rope.refuse("'partial_rotary_factor' other than 1 is not supported.")
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
