"""Mistral: every layer has the window, where there is one; no product has a bias."""

from engine.model_spec import ModelSpec
from engine.models.config_reader import ConfigReader
from engine.models.described import decoder_spec, layer_windows


def describe(config: ConfigReader) -> ModelSpec:
    windows = layer_windows(config, lambda: True, lambda layer: True)
    return decoder_spec(config, "mistral", windows=windows)
