"""A checkpoint directory: its files, found and checked before any weight is read. Torch-free.

Everything that would fail later fails here, as a CheckpointError that says what to do.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.checkpoint_config import read_json
from cluster.checkpoint_review import review
from cluster.errors import CheckpointError
from engine.model_spec import ModelSpec
from engine.models.config_reader import ConfigReader, parse_token_ids
from engine.models.registry import parse_model_spec
from engine.tensors import EMBEDDING, HEAD, expected_shapes

_ITEM_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format
_PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_GET_IT_AGAIN = "download or copy the checkpoint again"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    name: str
    file: Path
    shape: tuple[int, ...]


def load_spec(checkpoint: Path) -> ModelSpec:
    """Read config.json and check every file of the directory, weights unread."""
    spec = described_spec(checkpoint)
    stored_tensors(checkpoint, spec)
    return spec


def described_spec(checkpoint: Path) -> ModelSpec:
    """The same of a directory that need not have its weights."""
    if not checkpoint.is_dir():
        raise CheckpointError(
            f"There is no checkpoint directory '{checkpoint}': give the path of a directory "
            "with config.json and safetensors."
        )
    review(checkpoint)
    config_file, generation_file = checkpoint / "config.json", checkpoint / "generation_config.json"
    generation = ConfigReader(read_json(generation_file), str(generation_file))
    return parse_model_spec(
        read_json(config_file, required=True),
        str(config_file),
        parse_token_ids(generation, "eos_token_id"),
    )


def stored_tensors(checkpoint: Path, spec: ModelSpec) -> dict[str, StoredTensor]:
    """Finds where each tensor of the model lies: exactly those the model needs, in their shapes. A
    tied model's head is among them where the files have one: it may differ from the embedding."""
    found: dict[str, StoredTensor] = {}
    for file in _weight_files(checkpoint):
        for tensor in _read_header(file):
            if tensor.name in found:
                raise CheckpointError(f"'{tensor.name}' is in two files: {_GET_IT_AGAIN}.")
            found[tensor.name] = tensor
    expected = expected_shapes(spec)
    if spec.is_tied and HEAD in found:
        expected[HEAD] = expected[EMBEDDING]
        if EMBEDDING not in found:
            del expected[EMBEDDING]
    _refuse_differing_names(checkpoint, spec, expected, found)
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise CheckpointError(
                f"'{name}' in {found[name].file} has the shape {list(found[name].shape)}, but "
                f"config.json asks for {list(shape)}: the two are not of one model."
            )
    return {name: found[name] for name in expected}


def _refuse_differing_names(
    checkpoint: Path,
    spec: ModelSpec,
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, StoredTensor],
) -> None:
    if missing := sorted(expected.keys() - found.keys()):
        raise CheckpointError(
            f"{checkpoint} lacks {_some(missing)} of {spec.family}: {_GET_IT_AGAIN}."
        )
    # Derived buffers of old exports carry nothing.
    extra = {name for name in found.keys() - expected.keys() if not name.endswith(".inv_freq")}
    if extra:
        raise CheckpointError(
            f"{checkpoint} has {_some(sorted(extra))}, which {spec.family} does not use: "
            "it is a variant that the engine does not compute."
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more tensors"


def _weight_files(checkpoint: Path) -> list[Path]:
    index = checkpoint / "model.safetensors.index.json"
    single = checkpoint / "model.safetensors"
    if single.exists():
        return [single]
    if index.exists():
        return _indexed_files(index)
    pickled = sorted(p.name for p in checkpoint.iterdir() if p.suffix in _PICKLED_SUFFIXES)
    if pickled:
        raise CheckpointError(
            f"{checkpoint} has its weights only in pickled files ({pickled[0]}), which can run "
            "code when read: convert them to safetensors (save_pretrained does) and start again."
        )
    raise CheckpointError(
        f"{checkpoint} has neither model.safetensors nor model.safetensors.index.json: "
        f"{_GET_IT_AGAIN}."
    )


def _indexed_files(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no 'weight_map': {_GET_IT_AGAIN}.")
    names = {str(name) for name in weight_map.values()}
    for name in sorted(names):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{index} names '{name}', which is no safetensors file beside it."
            )
    files = {name: index.parent / name for name in sorted(names)}
    for tensor_name, name in weight_map.items():
        if not files[str(name)].exists():
            raise CheckpointError(
                f"{index.parent} lacks {name}, where '{tensor_name}' should be: {_GET_IT_AGAIN}."
            )
    return list(files.values())


def _read_header(file: Path) -> list[StoredTensor]:
    """The tensors of one safetensors file, whose size must be what its header says."""
    try:
        num_bytes = file.stat().st_size
        with file.open("rb") as stream:
            header_bytes = int.from_bytes(stream.read(8), "little")
            if num_bytes < 8 or header_bytes > min(num_bytes - 8, _MAX_HEADER_BYTES):
                raise CheckpointError(
                    f"{file} is truncated or no safetensors file ({num_bytes} bytes): "
                    f"{_GET_IT_AGAIN}."
                )
            header = json.loads(stream.read(header_bytes))
        header.pop("__metadata__", None)
        entries = [_parse_entry(file, name, entry) for name, entry in header.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file} cannot be read as safetensors ({error}): {_GET_IT_AGAIN}."
        ) from error
    wanted = 8 + header_bytes + max((end for _, end in entries), default=0)
    if num_bytes != wanted:
        raise CheckpointError(
            f"{file} is truncated or damaged: it has {num_bytes} bytes and should have {wanted}; "
            f"{_GET_IT_AGAIN}."
        )
    return [tensor for tensor, _ in entries]


def _parse_entry(file: Path, name: str, entry: Mapping[str, Any]) -> tuple[StoredTensor, int]:
    dtype, shape = entry["dtype"], tuple(int(size) for size in entry["shape"])
    start, end = entry["data_offsets"]
    if dtype not in _ITEM_BYTES:
        raise CheckpointError(
            f"'{name}' in {file} is stored as {dtype}; only {', '.join(_ITEM_BYTES)} are "
            "supported: use the original, not quantised checkpoint."
        )
    if end - start != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise ValueError(f"'{name}' has {end - start} bytes for the shape {list(shape)}")
    return StoredTensor(name=name, file=file, shape=shape), int(end)
