"""`penstock weights` says what a checkpoint consists of, and pulls one."""

import json
import os
from pathlib import Path

import pytest

from deploy.weights.kept import hold
from deploy.weights.manifest import NAME, PARTIAL, manifest_of
from deploy.weights.origin import Weights, kept_in
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


def test_they_are_listed_and_removed_by_hand(
    penstock: Penstock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    listed = penstock("weights", "list")
    assert (listed.out, listed.err[:19]) == ("", "None are kept here:")
    whole, begun = (Weights(source="/a", digest=f"sha256:{number:064x}") for number in (1, 2))
    for each, suffix in ((whole, ""), (begun, PARTIAL)):
        there = kept_in(each)
        there.with_name(there.name + suffix).mkdir(parents=True)
        (there.with_name(there.name + suffix) / MODEL).write_bytes(bytes(2_000_000))
    held = hold(whole)
    listed = penstock("weights", "list")
    assert listed.code == 0
    assert f"{whole.digest}  2 MB  in use\n" in listed.out
    assert f"{begun.digest}  2 MB  last used 0.0 days ago, not all of it has come\n" in listed.out
    refused = penstock("weights", "remove", whole.digest)
    assert refused.code == 1
    assert "it stays" in refused.err
    assert held is not None
    os.close(held)
    gone = penstock("weights", "remove", whole.digest, "--json")
    assert gone.json == {"removed": whole.digest, "bytes": 2_000_000}
    assert not kept_in(whole).exists()
    [left] = penstock("weights", "list", "--json").json
    assert (left["digest"], left["used"], left["whole"]) == (begun.digest, False, False)
    unknown = penstock("weights", "remove", "sha256:x")
    assert unknown.code == 1
    assert "'penstock weights list' says" in unknown.err
