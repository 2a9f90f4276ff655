"""Llama: every layer sees all; the configuration says which products have a bias."""

from engine.model_spec import ModelSpec
from engine.models.config_reader import ConfigReader
from engine.models.described import decoder_spec, layer_windows


def describe(config: ConfigReader) -> ModelSpec:
    has_bias = config.flag("attention_bias")
    return decoder_spec(
        config,
        "llama",
        windows=layer_windows(config, lambda: False, lambda layer: False),
        has_qkv_bias=has_bias,
        has_output_bias=has_bias,
        has_mlp_bias=config.flag("mlp_bias"),
    )
