"""Digests of a checkpoint directory: what two processes compare before they exchange ids or KV.

The model digest covers configuration, tokenizer and template files, and of the weights the
safetensors headers and sizes; all bytes of them where asked. Reads files, knows no model.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Protocol

from cluster.errors import CheckpointError

# What decides which ids a text has.
_TOKENIZER_FILES: Final = (
    "added_tokens.json",
    "config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
_TEMPLATES: Final = "additional_chat_templates"
FILES: Final = (
    *_TOKENIZER_FILES,
    "chat_template.jinja",
    "generation_config.json",
    "model.safetensors.index.json",
)
MAX_HEADER_BYTES: Final = 100_000_000  # the safetensors format's own limit
CHUNK_BYTES: Final = 1 << 20


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


def model_digest(checkpoint: Path, *, verify_weights: bool = False) -> str:
    """The two kinds of digest differ in their prefix, so that they never compare equal."""
    if not (checkpoint / "config.json").is_file():
        raise CheckpointError(
            f"'{checkpoint}' has no config.json: give the directory of a Hugging Face checkpoint."
        )
    digest = hashlib.sha256()
    _update_files(digest, checkpoint, (*FILES, *_templates(checkpoint)))
    for path in _weight_files(checkpoint):
        _update(digest, path.name, path.stat().st_size.to_bytes(8, "little"))
        _update(digest, "header", safetensors_header(path))
        if verify_weights:
            for chunk in _chunks(path):
                digest.update(chunk)
    return f"{'sha256-weights' if verify_weights else 'sha256'}:{digest.hexdigest()}"


def counted_files(checkpoint: Path) -> list[str]:
    """The names of all that an answer depends on; some lie in a folder. Raises CheckpointError."""
    named = [name for name in FILES if (checkpoint / name).is_file()]
    return [*named, *_templates(checkpoint), *(path.name for path in _weight_files(checkpoint))]


def text_digest(text: str | bytes) -> str:
    data = text.encode() if isinstance(text, str) else text
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def tokenizer_digest(checkpoint: Path) -> str:
    if not (checkpoint / "tokenizer.json").is_file():
        raise CheckpointError(
            f"'{checkpoint}' has no readable tokenizer.json: save the tokenizer there with its "
            "fast version."
        )
    digest = hashlib.sha256()
    _update_files(digest, checkpoint, _TOKENIZER_FILES)
    return f"sha256:{digest.hexdigest()}"


def safetensors_header(path: Path) -> bytes:
    """The JSON header of a safetensors file, whose length its first 8 bytes say."""
    size = path.stat().st_size
    with path.open("rb") as file:
        num_bytes = int.from_bytes(file.read(8), "little")
        if size < 8 or num_bytes > min(size - 8, MAX_HEADER_BYTES):
            raise CheckpointError(
                f"'{path}' is truncated or not a safetensors file ({size} bytes): copy it again."
            )
        return file.read(num_bytes)


def _templates(checkpoint: Path) -> list[str]:
    return sorted(f"{_TEMPLATES}/{p.name}" for p in (checkpoint / _TEMPLATES).glob("*.jinja"))


def _weight_files(checkpoint: Path) -> list[Path]:
    files = sorted(checkpoint.glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"'{checkpoint}' has no *.safetensors: save the weights in that format; pickled "
            "weights are never read."
        )
    return files


def _update_files(digest: _Hash, checkpoint: Path, names: Iterable[str]) -> None:
    for name in names:
        if (path := checkpoint / name).is_file():
            _update(digest, name, path.read_bytes())


def _update(digest: _Hash, name: str, data: bytes) -> None:
    """Names and lengths are hashed too, so that no two directories run into each other."""
    digest.update(f"{name}\0{len(data)}\0".encode())
    digest.update(data)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
