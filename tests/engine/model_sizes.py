"""Models of any size, of which nothing but the sizes matters."""

import dataclasses

from engine.checkpoint import load_spec
from engine.model_spec import ModelSpec
from tests.checkpoints import checkpoint

NAMES = "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim"


def spec_of(*sizes: int) -> ModelSpec:
    """In the order of `NAMES`; of two layers."""
    spec = load_spec(checkpoint("llama"))
    own = dict(zip(NAMES, sizes, strict=True))
    return dataclasses.replace(spec, num_layers=2, windows=(None, None), **own)
