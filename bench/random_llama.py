"""Random Llama checkpoints of a chosen size, for speed only: their answers mean nothing."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from engine.models.registry import parse_model_spec
from engine.tensors import expected_shapes

_TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaShape:
    num_layers: int = 12
    hidden_size: int = 512
    num_heads: int = 8
    num_kv_heads: int = 4
    intermediate_size: int = 1536
    vocab_size: int = 16384
    context_length: int = 4096


SHAPE_54M = LlamaShape()
SHAPE_100M = LlamaShape(num_layers=16, hidden_size=640, num_heads=10, num_kv_heads=5,
                        intermediate_size=1920)  # fmt: skip


def write_random_llama(
    directory: Path, shape: LlamaShape, *, seed: int = 0, tokenizer_from: Path | None = None
) -> None:
    """A complete checkpoint; `tokenizer_from` is a directory whose text files it borrows."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.context_length,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "eos_token_id": 2,
        "bos_token_id": 1,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, size in expected_shapes(parse_model_spec(config, "the shape")).items():
        noise = torch.randn(size, generator=generator)
        tensors[name] = 1 + 0.1 * noise if len(size) == 1 else noise / size[-1] ** 0.5
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    for file in _TEXT_FILES if tokenizer_from else ():
        if tokenizer_from and (tokenizer_from / file).exists():
            shutil.copy(tokenizer_from / file, directory / file)
