"""Somebody who types `penstock up` and `penstock down` at a real Ray of two machines, with a real
Redis and the shipped model."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from cluster.secrets import create_secrets
from deploy.run_dir import MEMORY, PREFIX
from penstock import Client
from tests.deploy.ray_machines import RayMachines, ray_machines
from tests.redis_server import redis_server

COMMAND = (sys.executable, "-m", "penstock")
QUESTION = [("user", "What does len do?")]
ANSWER = "Return the number of items in a container."
MACHINES: list[dict[str, Any]] = [
    {"num_cpus": 4, "labels": {"zone": "a"}},
    {"num_cpus": 4, "num_gpus": 2, "labels": {"zone": "b"}},
]
UP = ("up", "--wait", "--timeout", "150", "--json", "-f")


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """Who has a Ray, a Redis and a directory."""

    machines: RayMachines
    store: str
    home: Path

    def penstock(
        self, *arguments: str | Path, timeout_s: float = 200
    ) -> subprocess.CompletedProcess[str]:
        """Typed in a directory from which nothing is imported."""
        return subprocess.run(
            [*COMMAND, *map(str, arguments)],
            env=dict(self.machines.environment),
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def following(self, *arguments: str) -> subprocess.Popen[str]:
        """`penstock logs -f`, until the cluster ends."""
        return subprocess.Popen(
            [*COMMAND, "logs", "-f", *arguments],
            env=dict(self.machines.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def called(self, name: str) -> str:
        """The cluster's whole name: another test may run on this machine."""
        return f"{name}-{self.machines.token[:6]}"

    def write(self, name: str = "lab", **spec: Any) -> Path:
        """A cluster's file: a prefill and a decode worker of the shipped model."""
        secrets_file = self.home / f"{name}-secrets.yaml"
        if not secrets_file.exists():
            create_secrets(secrets_file)
        pools = [
            {"name": "prompts", "role": "prefill", "kvPool": "16MiB"},
            {"name": "answers", "role": "decode", "kvPool": "32MiB", "maxSequences": 16},
        ]
        routers = {"ports": [0], "internalPorts": [0]}
        said = {"pools": pools, "routers": routers, "store": self.store, "drain": "5s"}
        document = {
            "apiVersion": "penstock/v1",
            "kind": "Cluster",
            "metadata": {"name": self.called(name)},
            "spec": {**said, "secretsFile": str(secrets_file), **spec},
        }
        path = self.home / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def up(self, file: Path) -> dict[str, Any]:
        ended = self.penstock(*UP, file)
        assert ended.returncode == 0, ended.stderr
        said: dict[str, Any] = json.loads(ended.stdout)
        return said

    def pids(self, file: Path) -> dict[str, int]:
        return {name: each["pid"] for name, each in self.up(file)["processes"].items()}


@asynccontextmanager
async def an_operator(
    home: Path, machines: list[dict[str, Any]], **settings: str
) -> AsyncIterator[Operator]:
    async with redis_server() as redis:
        with ray_machines(home, machines, **settings) as found:
            yield Operator(machines=found, store=redis.url, home=home)


def answer_at(address: str) -> str:
    with Client(address) as client:
        return client.generate(messages=QUESTION).result().text


def left_of(cluster: str) -> list[str]:
    """All directories and processes of a cluster on this machine."""
    prefix = str(MEMORY / f"{PREFIX}{cluster}-")
    lines = (" ".join(each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"]))
    folders = [str(path) for path in MEMORY.iterdir() if str(path).startswith(prefix)]
    return folders + [line for line in lines if prefix in line]


def files_with(folder: Path, secrets: list[bytes]) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and any(secret in path.read_bytes() for secret in secrets):
            yield path


@contextmanager
def operating(home: Path, machines: list[dict[str, Any]], **settings: str) -> Iterator[Operator]:
    """The same, for several tests. `settings`: variables of Ray's own."""
    with asyncio.Runner() as runner:
        context = an_operator(home, machines, **settings)
        operator = runner.run(context.__aenter__())
        try:
            yield operator
        finally:
            runner.run(context.__aexit__(None, None, None))
