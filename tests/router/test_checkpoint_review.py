"""What a router says of a checkpoint's files: a warning once, a list for who asks, a refusal."""

import json
import logging
import shutil
from pathlib import Path

import pytest

from cluster.channel import open_channel
from cluster.errors import CheckpointError
from cluster.facts_codec import facts_from_pb
from penstock.v1 import worker_pb2
from router.config import RouterConfig
from router.front.text import Text
from tests.router.cluster_of_fakes import Cluster
from tests.router.fake_worker import TOKEN


def changed(checkpoint: Path, directory: Path, **config: object) -> Path:
    shutil.copytree(checkpoint, directory)
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return directory


def text(checkpoint: Path) -> Text:
    config = RouterConfig(checkpoint=checkpoint, model="m", secrets_file=checkpoint / "none")
    return Text.load(config, bytes(32))


def test_an_unknown_key_is_warned_of_once(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        text(changed(checkpoint, tmp_path / "model", made_by="me", also=3, attention_dropout=0.1))
    assert [record.getMessage() for record in caplog.records] == [
        "unknown keys, ignored: also, made_by in config.json"
    ]


def test_what_may_mean_the_model_is_refused_at_start(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'logits_scaling' in .* is 8: nobody here knows"):
        text(changed(checkpoint, tmp_path / "model", logits_scaling=8))


async def test_who_asks_a_router_hears_what_it_ignores(checkpoint: Path, tmp_path: Path) -> None:
    directory = changed(checkpoint, tmp_path / "model", attention_dropout=0.1)
    async with Cluster(directory, tmp_path) as cluster, open_channel(cluster.address, TOKEN) as it:
        asked = worker_pb2.DiagnoseRequest()
        answer = await it.unary("penstock.v1.Cluster", "Diagnose", asked, timeout_s=5)
    found = facts_from_pb(answer).review
    assert found is not None
    assert [(note.file, note.keys) for note in found.ignored] == [
        ("config.json", ("attention_dropout",))
    ]
