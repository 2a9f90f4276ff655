"""Two directories that would answer differently have two digests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import CheckpointError
from cluster.model_digest import model_digest, safetensors_header, tokenizer_digest
from cluster.tokenizer import Tokenizer
from tests.cluster.small_tokenizers import save_checkpoint


def change_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a config": lambda d: (d / "config.json").write_text('{"vocab_size": 513}'),
    "a tokenizer": lambda d: (d / "tokenizer.json").write_text("{}"),
    "a tokenizer's config": lambda d: (d / "tokenizer_config.json").write_text("{}"),
    "a template": lambda d: (d / "chat_template.jinja").write_text("x"),
    "a generation config": lambda d: (d / "generation_config.json").write_text("{}"),
    "a shard more": lambda d: (d / "z.safetensors").write_bytes(
        (d / "model.safetensors").read_bytes()
    ),
    "longer weights": lambda d: (d / "model.safetensors").write_bytes(
        (d / "model.safetensors").read_bytes() + b"x"
    ),
    "another name": lambda d: (d / "model.safetensors").rename(d / "other.safetensors"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_checkpoint_changes_its_digest(change: str, tmp_path: Path) -> None:
    digest = model_digest(save_checkpoint(tmp_path))
    assert model_digest(tmp_path) == digest
    CHANGES[change](tmp_path)
    assert model_digest(tmp_path) != digest


def test_a_copy_elsewhere_has_the_same_digest(tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        digests.add(model_digest(save_checkpoint(tmp_path / name)))
    assert len(digests) == 1


def test_what_is_not_served_does_not_count(tmp_path: Path) -> None:
    digest = model_digest(save_checkpoint(tmp_path))
    (tmp_path / "README.md").write_text("hello")
    assert model_digest(tmp_path) == digest


def test_the_weights_count_byte_by_byte_only_where_asked(tmp_path: Path) -> None:
    quick, full = (
        model_digest(save_checkpoint(tmp_path)),
        model_digest(tmp_path, verify_weights=True),
    )
    assert quick.startswith("sha256:")
    assert full.startswith("sha256-weights:")
    change_last_byte(tmp_path / "model.safetensors")
    assert model_digest(tmp_path) == quick
    assert model_digest(tmp_path, verify_weights=True) != full


@pytest.mark.parametrize("content", [b"", b"\x01", b"\xff" * 8, b"\xff" * 100, b"\x80\x04pickled"])
def test_truncated_weights_are_refused(content: bytes, tmp_path: Path) -> None:
    (save_checkpoint(tmp_path) / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
        model_digest(tmp_path)


def test_a_directory_that_is_no_checkpoint_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json: give"):
        model_digest(tmp_path)
    save_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(CheckpointError, match="pickled weights are never read"):
        model_digest(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        tokenizer_digest(tmp_path)


def test_a_tokenizer_has_the_digest_of_its_files(tmp_path: Path) -> None:
    save_checkpoint(tmp_path)
    assert Tokenizer.load(tmp_path).digest == tokenizer_digest(tmp_path)


def test_a_header_is_read_without_the_weights(tmp_path: Path) -> None:
    header = safetensors_header(save_checkpoint(tmp_path) / "model.safetensors")
    assert header.startswith(b'{"w": {"dtype": "U8"')
