"""Qwen2 and Qwen3: the layers from 'max_window_layers' on have a window, where one is used. In
Qwen2 q, k and v have a bias; in Qwen3 the configuration says so, and heads of q and k are normed.
"""

from engine.model_spec import ModelSpec
from engine.models.config_reader import ConfigReader
from engine.models.described import Windows, decoder_spec, layer_windows


def describe_qwen2(config: ConfigReader) -> ModelSpec:
    return decoder_spec(config, "qwen2", windows=_windows(config), has_qkv_bias=True)


def describe_qwen3(config: ConfigReader) -> ModelSpec:
    has_bias = config.flag("attention_bias")
    return decoder_spec(
        config,
        "qwen3",
        windows=_windows(config),
        has_qkv_bias=has_bias,
        has_output_bias=has_bias,
        has_qk_norm=True,
    )


def _windows(config: ConfigReader) -> Windows:
    def has_windows() -> bool:
        return config.flag("use_sliding_window")

    def is_windowed(layer: int) -> bool:
        first = config.get("max_window_layers")
        if not isinstance(first, int):
            raise config.wrong("max_window_layers", first, "a number of layers")
        return has_windows() and layer >= first

    return layer_windows(config, has_windows, is_windowed)
