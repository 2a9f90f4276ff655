"""A checkpoint that the engine cannot compute is refused at start, with what to do about it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from cluster.errors import CheckpointError
from engine.checkpoint import load_spec
from engine.config import EngineConfig
from engine.engine import Engine
from tests.checkpoints import FAMILIES, checkpoint, write_checkpoint
from tests.engine.driver import Driver, make_engine, make_sequence


def edit_config(directory: Path, **changes: Any) -> None:
    file = directory / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def edit_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def cut(directory: Path, num_bytes: int) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:num_bytes])


def overwrite(directory: Path, start: int, content: bytes) -> None:
    with (directory / "model.safetensors").open("r+b") as stream:
        stream.seek(start)
        stream.write(content)


def pickle_only(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def index_of(directory: Path, file: str) -> None:
    (directory / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": file}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


NORM = "model.norm.weight"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no directory": (shutil.rmtree, "There is no checkpoint directory"),
    "no config": (lambda d: (d / "config.json").unlink(), "has no config.json"),
    "config is no JSON": (lambda d: (d / "config.json").write_text("{"), "cannot be read as JSON"),
    "config is a list": (lambda d: (d / "config.json").write_text("[]"), "no JSON object"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "has neither model.safetensors"),
    "only pickled weights": (pickle_only, "convert them to safetensors"),
    "empty file": (lambda d: cut(d, 0), "truncated"),
    "cut in the header": (lambda d: cut(d, 100), "truncated"),
    "cut in the data": (lambda d: cut(d, 50_000), "it has 50000 bytes and should have"),
    "absurd header length": (lambda d: overwrite(d, 0, b"\xff" * 8), "truncated"),
    "header is no JSON": (lambda d: overwrite(d, 8, b"!!!!"), "cannot be read as safetensors"),
    "a missing shard": (lambda d: index_of(d, "model-00001.safetensors"), "lacks model-00001"),
    "a shard elsewhere": (lambda d: index_of(d, "../model.safetensors"), "no safetensors file"),
    "unknown architecture": (
        lambda d: edit_config(d, architectures=["GPT2LMHeadModel"]),
        "Use a checkpoint of one of: LlamaForCausalLM",
    ),
    "no architecture": (
        lambda d: edit_config(d, architectures=..., model_type=...),
        "is None, which is not supported",
    ),
    "an architecture that contradicts": (
        lambda d: edit_config(d, model_type="mistral"),
        "correct the one that is wrong",
    ),
    "quantised": (
        lambda d: edit_config(d, quantization_config={"quant_method": "gptq"}),
        "Use the original checkpoint",
    ),
    "quantised tensors": (
        lambda d: edit_tensors(d, lambda t: t.update({NORM: t[NORM].to(torch.float8_e4m3fn)})),
        "stored as F8_E4M3",
    ),
    "another activation": (lambda d: edit_config(d, hidden_act="gelu"), "'gelu'"),
    "unknown rotary type": (
        lambda d: edit_config(d, rope_parameters={"rope_type": "longrope"}),
        "'longrope' is not supported",
    ),
    "unknown rotary key": (
        lambda d: edit_config(d, rope_parameters={"rope_type": "linear", "factor": 2, "beta": 1}),
        "beta",
    ),
    "rotary factor missing": (
        lambda d: edit_config(d, rope_scaling={"type": "linear"}),
        "'factor'",
    ),
    "partial rotation": (lambda d: edit_config(d, partial_rotary_factor=0.5), "partial_rotary"),
    "layers missing in config": (
        lambda d: edit_config(d, num_hidden_layers=...),
        "hidden_layers' is missing",
    ),
    "negative size": (lambda d: edit_config(d, hidden_size=-64), "'hidden_size'"),
    "heads that do not share": (lambda d: edit_config(d, num_key_value_heads=3), "evenly"),
    "odd head size": (lambda d: edit_config(d, head_dim=15), "even 'head_dim'"),
    "more layers than weights": (
        lambda d: edit_config(d, num_hidden_layers=4),
        "lacks 'model.layers.3.input_layernorm.weight'",
    ),
    "fewer layers than weights": (
        lambda d: edit_config(d, num_hidden_layers=2),
        "has 'model.layers.2.input_layernorm.weight'",
    ),
    "another shape": (lambda d: edit_config(d, vocab_size=400), "[400, 64]"),
    "a missing tensor": (
        lambda d: edit_tensors(d, lambda t: t.pop("lm_head.weight")),
        "lacks 'lm_head.weight'",
    ),
    "an unexpected tensor": (
        lambda d: edit_tensors(d, lambda t: t.update(extra=torch.ones(2))),
        "'extra'",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_checkpoint_is_refused_with_a_sentence(name: str, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(checkpoint("llama"), directory)
    break_it, words = BROKEN[name]
    break_it(directory)
    with pytest.raises(CheckpointError) as caught:
        load_spec(directory)
    assert words in caught.value.message
    assert str(tmp_path) in caught.value.message


@pytest.mark.parametrize("family", FAMILIES)
def test_the_geometry_is_the_reference_s(family: str) -> None:
    spec = load_spec(checkpoint(family))
    config_class, changes = FAMILIES[family]
    assert spec.family == config_class.model_type
    assert spec.num_kv_heads == changes.get("num_key_value_heads", 2)
    assert spec.head_dim == changes.get("head_dim", 16)
    assert spec.end_token_ids == (1,)
    assert any(spec.windows) == (family in {"mistral", "mistral-mqa"} or "window" in family)


def test_shards_and_the_old_rotary_form_read_like_one_file(tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}
    shape = {
        "vocab_size": 384,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    config = LlamaConfig(**shape, rope_parameters=rope)
    write_checkpoint(tmp_path / "one", config)
    write_checkpoint(tmp_path / "many", config, max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    old = {"type": "linear", "factor": 2.0}
    edit_config(tmp_path / "many", rope_parameters=..., rope_theta=500.0, rope_scaling=old)
    outputs = [
        Driver(make_engine(tmp_path / name)).run([make_sequence(range(9, 40), max_tokens=8)])
        for name in ("one", "many")
    ]
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_computed_with_in_float32(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(checkpoint("llama"), directory)
    edit_tensors(directory, lambda t: t.update({k: v.to(dtype) for k, v in t.items()}))
    rounded = tmp_path / "rounded"
    shutil.copytree(directory, rounded)
    edit_tensors(rounded, lambda t: t.update({k: v.float() for k, v in t.items()}))
    outputs = [
        Driver(make_engine(path)).run([make_sequence(range(9, 40), max_tokens=8)])
        for path in (directory, rounded)
    ]
    assert outputs[0] == outputs[1]


def test_a_kv_buffer_that_is_too_small_is_refused() -> None:
    config = EngineConfig(
        checkpoint=checkpoint("llama"), num_blocks=4, block_size=16, num_threads=1
    )
    with pytest.raises(ValueError, match="KV buffer has 8 bytes"):
        Engine(load_spec(config.checkpoint), config, bytearray(8))
