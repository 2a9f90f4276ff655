"""`ray up` with the commands of deploy/ray/local.yaml, where no machine can be made."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from tests.machines.ray_up import CERTIFICATE, LOCAL, TRIES, VENV
from tests.redis_server import free_port

pytestmark = [pytest.mark.prove, pytest.mark.alone, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
NETWORK = f"127.{os.getpid() % 250 + 1}.99"  # 127.0.0.1 Ray would replace by the outward address
MISSING_FROM_EXTERNAL = {
    "docker": {},
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 1000000,
    "initialization_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "cluster_synced_files": [],
    "rsync_exclude": [],
    "rsync_filter": [],
}


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short: sockets lie in it, whose paths have 107 bytes at most."""
    path = Path(tempfile.mkdtemp(prefix="up"))
    try:
        yield path
    finally:
        for process in running_in(path):
            process.kill()
        shutil.rmtree(path)


def running_in(directory: Path) -> list[psutil.Process]:
    """Whose home is there."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOME", "").startswith(f"{directory}/"):
                found.append(process)
        except psutil.Error:
            continue
    return found


def described(directory: Path, port: int) -> Path:
    text = LOCAL.read_text().replace("6379", str(port))
    text = text.replace("/srv/penstock/.venv/bin", "$HOME/bin")
    text = text.replace("RAY_REDIS_ADDRESS=rediss://10.0.0.4:6380 ", "")  # and keep nothing
    document = yaml.safe_load(text)
    document["provider"] = {
        "type": "external",
        "module": "tests.machines.loopback.LoopbackProvider",
        "directory": str(directory),
        "addresses": [f"{NETWORK}.{number}" for number in (1, 2, 3)],
    }
    document["auth"] = {}
    document["head_node_type"] = "head"
    kind = {"resources": {"CPU": 2}, "node_config": {}}
    document["available_node_types"] = {
        "head": {**kind, "max_workers": 0},
        "worker": {**kind, "min_workers": 2, "max_workers": 2},
    }
    path = directory / "up.yaml"
    path.write_text(yaml.safe_dump({**MISSING_FROM_EXTERNAL, "max_workers": 2, **document}))
    return path


def test_three_come_up_and_go_down_without_ssh(directory: Path) -> None:
    laptop = directory / "laptop"
    (laptop / "penstock").mkdir(parents=True)
    (laptop / "penstock" / "secrets.yaml").write_text("cluster_token: planted\n")
    (laptop / ".ray").mkdir()
    for name in CERTIFICATE:
        (laptop / ".ray" / name).write_text("of a Redis that is not there\n")
    environment = {
        **os.environ,
        "HOME": str(laptop),
        "PATH": f"{VENV / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "REAL_RAY": str(VENV / "bin" / "ray"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_TMPDIR": str(directory),
    }

    def ray(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        ended = subprocess.run(
            ["ray", *arguments],
            env=environment,
            cwd=laptop,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert not (check and ended.returncode), ended.stdout[-6000:]
        return ended

    ray("get-auth-token", "--generate")
    port = free_port()
    file = str(described(directory, port))
    for attempt in range(TRIES):
        if not ray("up", "-y", "--no-config-cache", file, check=attempt == TRIES - 1).returncode:
            break
    address = f"{NETWORK}.1:{port}"
    status, began = "", time.monotonic()
    while not (" 1 head\n" in status and " 2 worker\n" in status):
        assert time.monotonic() - began < 150, status
        status = ray("status", "--address", address, check=False).stdout
    raylets = [process for process in running_in(directory) if process.name() == "raylet"]
    assert len({process.environ()["HOME"] for process in raylets}) == 3
    ray("down", "-y", file)
    left = [process for process in running_in(directory) if process.name() == "raylet"]
    assert left == []
