"""`ray up` with the commands of deploy/ray/local.yaml, where no machine can be made: an operator
who rules directories and loopback addresses of this one, by a provider without ssh."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.machines.ray_up import CERTIFICATE, LOCAL, TRIES, VENV
from tests.redis_server import free_port

ROOT = Path(__file__).resolve().parents[2]
NETWORK = f"127.{os.getpid() % 250 + 1}.99"  # 127.0.0.1 Ray would replace by the outward address
MISSING_FROM_EXTERNAL: dict[str, Any] = {
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


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopbackRay:
    """A Ray that is up."""

    directory: Path
    environment: dict[str, str]  # of who types
    address: str

    @property
    def laptop(self) -> Path:
        return self.directory / "laptop"

    def run(self, *command: str, check: bool = True, timeout_s: float = 300) -> str:
        return _run(self.environment, self.laptop, *command, check=check, timeout_s=timeout_s)[1]

    def raylets(self) -> dict[str, psutil.Process]:
        """By the address of their machine."""
        return {
            process.environ()["ADDRESS"]: process
            for process in _running_in(self.directory)
            if process.name() == "raylet"
        }


@contextmanager
def loopback_ray(*, least: int, most: int, cpus: int = 2, **settings: Any) -> Iterator[LoopbackRay]:
    """A head, and so many machines beside it, of so many CPUs each. `settings`: of its file."""
    directory = Path(tempfile.mkdtemp(prefix="up"))  # short: a socket's path has 107 bytes at most
    try:
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
        port = free_port()
        types = {"min_workers": least, "max_workers": most, "resources": {"CPU": cpus}}
        file = directory / "up.yaml"
        file.write_text(yaml.safe_dump(_described(directory, port, types, settings)))
        _run(environment, laptop, "ray", "get-auth-token", "--generate")
        command = ("ray", "up", "-y", "--no-config-cache", str(file))
        for attempt in range(TRIES):
            if not _run(environment, laptop, *command, check=attempt == TRIES - 1)[0]:
                break
        address = f"{NETWORK}.1:{port}"
        environment["RAY_ADDRESS"] = address
        ray = LoopbackRay(directory=directory, environment=environment, address=address)
        yield ray
        ray.run("ray", "down", "-y", str(file))
        assert ray.raylets() == {}
    finally:
        for process in _running_in(directory):
            process.kill()
        shutil.rmtree(directory)


def _described(
    directory: Path, port: int, types: dict[str, Any], settings: dict[str, Any]
) -> dict[str, Any]:
    text = LOCAL.read_text().replace("6379", str(port))
    text = text.replace("/srv/penstock/.venv/bin", "$HOME/bin")
    text = text.replace("RAY_REDIS_ADDRESS=rediss://10.0.0.4:6380 ", "")  # and keep nothing
    document = yaml.safe_load(text)
    most = types["max_workers"]
    document["provider"] = {
        "type": "external",
        "module": "tests.machines.loopback.LoopbackProvider",
        "directory": str(directory),
        "addresses": [f"{NETWORK}.{number + 1}" for number in range(most + 1)],
    }
    document["auth"] = {}
    document["head_node_type"] = "head"
    document["available_node_types"] = {
        "head": {"node_config": {}, "resources": types["resources"], "max_workers": 0},
        "worker": {"node_config": {}, **types},
    }
    return {**MISSING_FROM_EXTERNAL, "max_workers": most, **document, **settings}


def _running_in(directory: Path) -> list[psutil.Process]:
    """Whose home is there."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOME", "").startswith(f"{directory}/"):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _run(
    environment: dict[str, str],
    home: Path,
    *command: str,
    check: bool = True,
    timeout_s: float = 300,
) -> tuple[int, str]:
    ended = subprocess.run(
        command,
        env=environment,
        cwd=home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
    )
    assert not (check and ended.returncode), ended.stdout[-6000:]
    return ended.returncode, ended.stdout
