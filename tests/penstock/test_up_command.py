"""What `penstock up` and `penstock down` refuse before they have found a Ray."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HEAD = "apiVersion: penstock/v1\nkind: Cluster\nmetadata: {name: lab}\nspec:\n"
STORE, SECRETS = "  store: redis://127.0.0.1:1/0\n", "  secretsFile: secrets.yaml\n"


def penstock(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "penstock", *map(str, arguments)],
        env={key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (SECRETS, "add 'store: redis://HOST:6379/0' under 'spec'"),
        (STORE, "add 'secretsFile: FILE' under 'spec'"),
        (STORE + SECRETS + "  checkpoint: none\n", "There is no checkpoint directory at"),
    ],
)
def test_what_many_machines_need_is_asked_for_first(
    tmp_path: Path, spec: str, sentence: str
) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(HEAD + spec)
    ended = penstock("up", "-f", file, "--ray", "127.0.0.1:1")
    assert ended.returncode == 2
    assert sentence in ended.stderr


def test_a_dead_address_and_one_that_is_no_ray_are_said_in_seconds() -> None:
    began = time.monotonic()
    ended = penstock("down", "lab", "--ray", "127.0.0.1:1")
    assert ended.returncode == 1
    assert "No Ray answers at 127.0.0.1:1" in ended.stderr
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        ended = penstock("down", "lab", "--ray", address)
    assert ended.returncode == 1
    assert f"What listens at {address} is no Ray that answers" in ended.stderr
    assert time.monotonic() - began < 20  # two starts, and three seconds


def test_a_name_and_a_file_are_one_too_many(tmp_path: Path) -> None:
    ended = penstock("down", "lab", "-f", tmp_path / "lab.yaml")
    assert ended.returncode == 2
    assert "the cluster's name or '--file'" in ended.stderr
