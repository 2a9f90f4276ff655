"""`penstock weights` says what a checkpoint consists of, and pulls one."""

import json
from pathlib import Path

import pytest

from deploy.weights.manifest import NAME, manifest_of
from tests.deploy.weights_server import MODEL, make_weights
from tests.penstock.command_line import Penstock


def test_a_digest_is_written_down_and_believed(penstock: Penstock, tmp_path: Path) -> None:
    source = make_weights(tmp_path / "source")
    (source / NAME).unlink()
    ended = penstock("weights", "digest", str(source))
    digest = manifest_of(source).digest
    assert (ended.code, ended.out) == (0, f"{digest}\n")
    assert (source / NAME).read_bytes() == manifest_of(source).text
    assert penstock("weights", "digest", str(source), "--json").json["digest"] == digest
    (tmp_path / "empty").mkdir()
    ended = penstock("weights", "digest", str(tmp_path / "empty"))
    assert ended.code == 2
    assert "has no *.safetensors" in ended.err


@pytest.mark.slow
def test_weights_are_pulled_by_hand(penstock: Penstock, tmp_path: Path) -> None:
    source, there = make_weights(tmp_path / "source"), tmp_path / "there"
    digest = manifest_of(source).digest
    pull = ("weights", "pull", str(source), "--to", str(there), "--digest")
    assert penstock(*pull, digest, "--json").json == {"checkpoint": str(there)}
    assert (there / MODEL).read_bytes() == (source / MODEL).read_bytes()
    ended = penstock(*pull, "sha256:" + "0" * 64)
    assert ended.code == 1
    assert f"has the digest {digest}, and wanted is sha256:000" in ended.err
    assert json.loads(penstock(*pull, digest, "--json").out) == {"checkpoint": str(there)}
    ended = penstock("weights", "pull", "https://a/?key=hunter2", "--digest", digest)
    assert ended.code == 2
    assert "hunter2" not in ended.err
