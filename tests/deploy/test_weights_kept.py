"""Weights in a user's cache: those that are used stay, others make way for what has no room."""

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.errors import WeightsError
from deploy.weights import kept as keeping
from deploy.weights.kept import hold, kept, remove
from deploy.weights.manifest import PARTIAL
from deploy.weights.origin import Weights, kept_in
from deploy.weights.pull import pull
from tests.deploy.weights_server import WeightsServer, make_weights, serving_weights

DISK_BYTES = 14_000_000  # two times the weights that are pulled, and not three times
MODEL = "model.safetensors"
HOLDER = """
import sys, time
from deploy.weights.kept import hold
from deploy.weights.origin import Weights
hold(Weights(source="/nowhere", digest=sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a user, on a small disk of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "penstock" / "weights"
    folder.mkdir(parents=True)
    usage = namedtuple("usage", "free")

    def measured(path: Path) -> usage:
        files = [each for each in folder.rglob("*") if each.is_file()]
        return usage(free=DISK_BYTES - sum(each.stat().st_size for each in files))

    monkeypatch.setattr(shutil, "disk_usage", measured)
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WeightsServer]:
    with serving_weights(make_weights(tmp_path / "source")) as served:
        yield served


def weights(number: int) -> Weights:
    return Weights(source="/nowhere", digest=f"sha256:{number:064x}")


def put(number: int, *, used_at: float, suffix: str = "", num_bytes: int = 5_000_000) -> Path:
    """Weights that were there before, or begun."""
    found = kept_in(weights(number))
    there = found.with_name(found.name + suffix)
    there.mkdir()
    (there / MODEL).write_bytes(bytes(num_bytes))
    os.utime(there, (used_at, used_at))
    return there


def pulled(server: WeightsServer, folder: Path | None = None) -> list[str]:
    said: list[str] = []
    pull(server.weights, folder or kept_in(server.weights), say=said.append)
    return said


def test_the_longest_unused_makes_way_and_no_more_than_has_to(server: WeightsServer) -> None:
    newer, older = put(1, used_at=2e9), put(2, used_at=1e9)
    said = pulled(server)
    assert (newer.exists(), older.exists()) == (True, False)
    assert any(f"{weights(2).digest}, of 5 MB, made way" in line for line in said)
    assert kept_in(server.weights).exists()


@pytest.mark.slow
def test_what_another_cluster_of_this_machine_uses_stays(server: WeightsServer) -> None:
    """As long as its process lives, however that ends."""
    used, unused = put(1, used_at=1e9), put(2, used_at=2e9)
    command = [sys.executable, "-c", HOLDER, weights(1).digest]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        pulled(server)
        assert (used.exists(), unused.exists()) == (True, False)
        [found] = [each for each in kept() if each.name.endswith("1")]
        assert found.is_used
        assert not remove(found)
        holder.kill()
    assert not next(each for each in kept() if each.name.endswith("1")).is_used


def test_what_broke_off_makes_way_too_and_this_pull_goes_on(server: WeightsServer) -> None:
    begun = put(1, used_at=1e9, suffix=PARTIAL, num_bytes=6_000_000)
    whole = put(2, used_at=2e9, num_bytes=4_000_000)
    pulled(server)
    assert (begun.exists(), whole.exists()) == (False, True)


def test_nothing_goes_where_all_of_it_would_not_do(
    server: WeightsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = put(1, used_at=1e9, num_bytes=1_000_000)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(free=1_000_000))
    with pytest.raises(WeightsError, match="make room"):
        pulled(server)
    assert there.exists()


def test_beside_a_directory_that_a_file_names_nothing_is_touched(
    server: WeightsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = put(1, used_at=1e9)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(free=1_000_000))
    with pytest.raises(WeightsError, match="make room"):
        pulled(server, tmp_path / "named" / "model")
    assert there.exists()
    assert hold(server.weights, str(tmp_path / "named" / "model")) is None


def test_a_removal_that_broke_off_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    there = put(1, used_at=1e9)

    def broken(path: Path, **_: object) -> None:
        if path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(keeping.shutil, "rmtree", broken)
        with pytest.raises(KeyboardInterrupt):
            remove(kept()[0])
    assert not there.exists(), "nobody finds half of it"
    [left] = kept()
    assert (left.is_whole, left.num_bytes > 0) == (False, True)
    assert remove(left)
    assert kept() == []
