"""The families of models that the engine computes, by their 'model_type'. Knows no torch: all of
them are computed by `engine/models/decoder.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from cluster.checkpoint_config import completed, model_family
from engine.model_spec import ModelSpec
from engine.models import llama, mistral, qwen
from engine.models.config_reader import ConfigReader

FAMILIES: Final[Mapping[str, Callable[[ConfigReader], ModelSpec]]] = {
    "llama": llama.describe,
    "mistral": mistral.describe,
    "qwen2": qwen.describe_qwen2,
    "qwen3": qwen.describe_qwen3,
}


def parse_model_spec(
    values: Mapping[str, Any], source: str, end_token_ids: tuple[int, ...] = ()
) -> ModelSpec:
    """*Raises* CheckpointError where the model is not one that the engine computes exactly."""
    family = model_family(values, source)
    spec = FAMILIES[family](ConfigReader(completed(values, family), source))
    return replace(spec, end_token_ids=end_token_ids) if end_token_ids else spec
