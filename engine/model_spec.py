"""The geometry of a model, read strictly from a checkpoint's config.json. Knows no torch and no
weights.

What would change the model's output and is not supported is refused by name, never ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cluster.checkpoint_config import (
    completed,
    context_length,
    model_family,
    rope_kind,
    rope_of,
)
from cluster.checkpoint_keys import ROPE_KINDS
from cluster.errors import CheckpointError
from cluster.types import KvLayout


class Family(StrEnum):
    LLAMA = "llama"
    QWEN2 = "qwen2"
    QWEN3 = "qwen3"
    MISTRAL = "mistral"


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
    family: Family
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
    is_tied: bool  # the output head is the embedding, where the weights do not say otherwise
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
        self.values = values
        self._source = source

    def get(self, key: str) -> Any:
        return self.values.get(key)

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key)
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.wrong(key, value, "a positive integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key)
        if value is None:
            value = default
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise self.wrong(key, value, "a positive number")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        return None if self.values.get(key) is None else self.number(key)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def nested(self, key: str) -> "ConfigReader":
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise self.wrong(key, value, "an object")
        return ConfigReader(value, f"'{key}' in {self._source}")

    def wrong(self, key: str, value: Any, wanted: str) -> CheckpointError:
        if value is None:
            return self.refuse(f"'{key}' is missing, and has no default: give {wanted}.")
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
    family = Family(model_family(values, source))
    config = ConfigReader(completed(values, family), source)
    _check_activation(config)
    num_layers = config.integer("num_hidden_layers")
    num_heads = config.integer("num_attention_heads")
    has_bias_flag = family in (Family.LLAMA, Family.QWEN3)
    has_bias = has_bias_flag and config.flag("attention_bias")
    return ModelSpec(
        family=family,
        num_layers=num_layers,
        hidden_size=config.integer("hidden_size"),
        intermediate_size=config.integer("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(config, num_heads),
        head_dim=_head_dim(config, num_heads),
        vocab_size=config.integer("vocab_size"),
        context_length=context_length(config.values, source),
        rms_norm_eps=config.number("rms_norm_eps"),
        rope=_rope(config),
        windows=_windows(config, family, num_layers),
        is_tied=config.flag("tie_word_embeddings"),
        has_qkv_bias=family is Family.QWEN2 or has_bias,
        has_output_bias=has_bias,
        has_mlp_bias=family is Family.LLAMA and config.flag("mlp_bias"),
        has_qk_norm=family is Family.QWEN3,
        end_token_ids=end_token_ids or parse_token_ids(config, "eos_token_id"),
    )


def parse_token_ids(config: ConfigReader, key: str) -> tuple[int, ...]:
    value = config.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise config.wrong(key, value, "a token id or a list of token ids")
    return tuple(ids)


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


_LAYER_TYPES = {"sliding_attention": True, "full_attention": False, "attention": False}


def _windows(config: ConfigReader, family: Family, num_layers: int) -> tuple[int | None, ...]:
    is_windowed = _windowed_layers(config, family, num_layers)
    if not any(is_windowed):
        return (None,) * num_layers
    has_windows = family is Family.MISTRAL or _uses_windows(config, family)
    if not has_windows or config.get("sliding_window") is None:
        raise config.refuse("'layer_types' has sliding attention, but there is no window for it.")
    window = config.integer("sliding_window")
    return tuple(window if each else None for each in is_windowed)


def _windowed_layers(config: ConfigReader, family: Family, num_layers: int) -> list[bool]:
    """Which layers see a window only: as 'layer_types' says, else as the family has it."""
    types = config.get("layer_types")
    if types is not None:
        if not isinstance(types, list) or len(types) != num_layers:
            raise config.wrong("layer_types", types, f"a list of {num_layers}")
        if unknown := [each for each in types if each not in _LAYER_TYPES]:
            raise config.wrong("layer_types", unknown[0], f"of {sorted(_LAYER_TYPES)}")
        return [_LAYER_TYPES[each] for each in types]
    if family is Family.LLAMA or config.get("sliding_window") is None:
        return [False] * num_layers
    if family is Family.MISTRAL:
        return [True] * num_layers
    first = config.get("max_window_layers")
    if not isinstance(first, int):
        raise config.wrong("max_window_layers", first, "a number of layers")
    return [_uses_windows(config, family) and layer >= first for layer in range(num_layers)]


def _uses_windows(config: ConfigReader, family: Family) -> bool:
    return family in (Family.QWEN2, Family.QWEN3) and config.flag("use_sliding_window")


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
