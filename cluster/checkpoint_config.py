"""config.json as the reference completes it: which family it is of, what keys mean that it does
not have, and how long a sequence may be. Knows no weights.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cluster.errors import CheckpointError

ARCHITECTURES: Final = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM",
}
_FAMILIES: Final = {architecture: family for family, architecture in ARCHITECTURES.items()}

_EVERYWHERE: Final[Mapping[str, Any]] = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
}
_QWEN: Final[Mapping[str, Any]] = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
# What an absent key means. Sizes of the weights have no default here: a file without them is not
# whole.
DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "llama": {"max_position_embeddings": 2048, "attention_bias": False, "mlp_bias": False},
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128, "attention_bias": False},
    "mistral": {
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
    },
}


def model_family(config: Mapping[str, Any], source: str) -> str:
    """The model type; it and the architecture must not contradict each other.

    *Raises* CheckpointError for a family that is not served.
    """
    model_type, names = config.get("model_type"), config.get("architectures")
    known = ", ".join(ARCHITECTURES.values())
    if names is not None:
        if not isinstance(names, list) or len(names) != 1 or names[0] not in _FAMILIES:
            raise CheckpointError(
                f"'architectures' in {source} is {names!r}, which is not supported. Use a "
                f"checkpoint of one of: {known}."
            )
        family = _FAMILIES[names[0]]
        if model_type not in (None, family):
            raise CheckpointError(
                f"'model_type' in {source} is {model_type!r}, but 'architectures' {names[0]!r}: "
                "correct the one that is wrong."
            )
        return family
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise CheckpointError(
            f"'model_type' in {source} is {model_type!r}, which is not supported. Use a checkpoint "
            f"of one of: {known}."
        )
    return model_type


def completed(config: Mapping[str, Any], family: str) -> dict[str, Any]:
    """Adds what absent keys mean; a null stays one."""
    return {**_EVERYWHERE, **DEFAULTS[family], **config}


def rope_of(config: Mapping[str, Any]) -> Any:
    """The rotary parameters in either of their places, the older first."""
    return config.get("rope_scaling") or config.get("rope_parameters") or {}


def rope_kind(rope: Mapping[str, Any]) -> Any:
    return rope.get("rope_type") or rope.get("type") or "default"


def context_length(config: Mapping[str, Any], source: str) -> int:
    """The longest sequence. YaRN reaches its factor times the length it was trained with, also
    where 'max_position_embeddings' was left as it was when the scaling was added."""
    own = _length(config, "max_position_embeddings", source)
    rope = rope_of(config)
    if not isinstance(rope, dict) or rope_kind(rope) != "yarn":
        return own
    factor = rope.get("factor")
    if not isinstance(factor, int | float) or factor < 1:
        return own
    trained = {"original_max_position_embeddings": own, **_given(rope), **_given(config)}
    return max(own, int(factor * _length(trained, "original_max_position_embeddings", source)))


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    key = "original_max_position_embeddings"
    return {key: values[key]} if values.get(key) is not None else {}


def _length(config: Mapping[str, Any], key: str, source: str) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise CheckpointError(f"'{key}' in {source} must be a positive integer, not {value!r}.")
    return value


def read_json(path: Path, *, required: bool = False) -> dict[str, Any]:
    """The file's object; empty where the file is absent and not required."""
    if not path.is_file():
        if required:
            raise CheckpointError(
                f"'{path.parent}' has no {path.name}: give the directory of a complete "
                "Hugging Face checkpoint."
            )
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"'{path}' cannot be read as JSON ({error}): it is truncated or damaged, copy it again."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"'{path}' holds no JSON object: copy it again.")
    return content
