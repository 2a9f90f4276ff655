"""Weights that a cluster's file names reach who needs them: placed processes, and a cluster that is
served."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from deploy.log_dir import placed_log_root
from deploy.placed import PlacedSupervisor, StartOrder
from deploy.run_dir import shared_path
from deploy.weights.kept import kept
from deploy.weights.manifest import manifest_of
from deploy.weights.origin import Weights, kept_in
from penstock import Client
from tests.deploy.placed_orders import MACHINE, QUICK, order_of
from tests.deploy.polling import until
from tests.deploy.served import serving
from tests.deploy.weights_server import (
    MODEL,
    MODEL_BYTES,
    copy_of_the_shipped_model,
    make_weights,
    serving_weights,
)


def place(folder: Path, order: StartOrder) -> PlacedSupervisor:
    return PlacedSupervisor(
        order, machine=MACHINE, directory="lab", supervision=QUICK, run_dir_parent=folder
    )


@pytest.mark.slow
def test_two_placed_processes_have_their_weights_pulled_once_and_tell_how_far_that_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serving_weights(make_weights(tmp_path / "source")) as server:
        there = kept_in(server.weights)
        server.hold_at = 1 << 20
        orders = [
            replace(order_of(tmp_path, name), weights=server.weights)
            for name in ("decode-0", "decode-1")
        ]
        placed = [place(tmp_path, order) for order in orders]
        try:
            until(
                lambda: any(" of 5.2 MB, " in each.state().said for each in placed),
                "one says how far it is",
            )
            until(
                lambda: any("waiting for it" in each.state().said for each in placed),
                "the other says for what it waits",
            )
            assert [each.state().address for each in placed] == ["", ""]
            server.released.set()
            until(lambda: all(each.state().address for each in placed), "both serve")
            said = (shared_path("lab", tmp_path) / "decode-1.yaml").read_text()
            assert yaml.safe_load(said)["checkpoint"] == str(there)
            assert [each.state().said for each in placed] == ["", ""]
            assert [each.is_used for each in kept()] == [True]
        finally:
            for each in placed:
                each.stop(0.0)
        assert [each.is_used for each in kept()] == [False]
        assert server.num_sent(MODEL) == MODEL_BYTES
    logs = [path.read_text() for path in (placed_log_root() / "lab").glob("decode-*.log")]
    assert sum("Pulling weights from" in text for text in logs) == 1


@pytest.mark.slow
def test_a_placed_process_whose_weights_are_others_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    source = make_weights(tmp_path / "source")
    wrong = "sha256:" + hashlib.sha256(b"others").hexdigest()
    order = replace(
        order_of(tmp_path),
        weights=Weights(source=str(source), digest=wrong),
        weights_dir=str(tmp_path / "model"),
    )
    placed = place(tmp_path, order)
    try:
        until(lambda: f"wanted is {wrong}" in placed.state().said, "it says why")
        assert manifest_of(source).digest in placed.state().said
        assert placed.state().pid == 0
    finally:
        placed.stop(0.0)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_cluster_whose_file_names_a_url_is_served_and_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving_weights(copy_of_the_shipped_model(tmp_path / "source")) as server:
        weights = {"source": server.url, "digest": server.weights.digest}
        document = {
            "apiVersion": "penstock/v1",
            "kind": "Cluster",
            "metadata": {"name": "pulled"},
            "spec": {
                "weights": weights,
                "pools": [{"name": "decode", "role": "decode", "minWorkers": 1, "numBlocks": 64}],
                "routers": {"ports": [0], "internalPorts": [0]},
            },
        }
        file = tmp_path / "cluster.yaml"
        file.write_text(yaml.safe_dump(document))
        home = tmp_path / "home"
        monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        with serving(home, "-f", str(file)) as served:
            assert served.ready["model"] == "tiny"
            with Client(served.address) as client:
                answer = client.generate("What does len do?", max_tokens=4).result()
            assert answer.text
            assert [each.is_used for each in kept()] == [True]
        assert [each.is_used for each in kept()] == [False]
        assert any("Pulling weights from" in line for line in served.said)
        [sums] = (home / "cache" / "penstock" / "weights").glob("*/SHA256SUMS")
        assert sums.parent.name == server.weights.digest.removeprefix("sha256:")
