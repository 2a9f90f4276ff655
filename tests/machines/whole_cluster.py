"""A whole cluster on machines that `ray up` made, a Redis on a machine of its own, all of it ruled
from a laptop; and clients that ask it without pause."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from cluster.secrets import create_secrets
from tests.machines.network import Machine, Network
from tests.machines.ray_up import PASSWORD, VENV, ZONES, RayMachines, ray_machines, start_redis

UP = "penstock up -f ~/penstock/cluster.yaml --wait --timeout 200 --json"


def pool(name: str, role: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "role": role, "kvPool": "16MiB", "resources": {"cpus": 0.5}, **more}


def described(store: str, pools: list[dict[str, Any]], *, is_open: bool, doors: str) -> str:
    """`is_open`: clients come in from other machines, too, which takes the word. `doors`: the zone
    of the routers."""
    door: dict[str, Any] = {"bind": "0.0.0.0" if is_open else "127.0.0.1"}
    if doors:
        door["labels"] = {"zone": doors}
    spec = {
        "pools": pools,
        "routers": {"count": 2, "ports": [50051], **door},
        **({"insecure": True} if is_open else {}),
        "store": store,
        "secretsFile": "secrets.yaml",
        "drain": "10s",
    }
    head = {"apiVersion": "penstock/v1", "kind": "Cluster", "metadata": {"name": "lab"}}
    return yaml.safe_dump({**head, "spec": spec})


def a_cluster(
    network: Network,
    pools: list[dict[str, Any]],
    secrets: Path,
    zones: Mapping[str, str] = ZONES,
    *,
    is_open: bool = False,
    doors: str = "",
) -> RayMachines:
    """Ray is up, Penstock not yet."""
    store = start_redis(network)
    create_secrets(secrets)
    text = secrets.read_text() + f"store_password: {PASSWORD}\n"
    url = f"redis://{store.address}:6379/0"
    described_as = described(url, pools, is_open=is_open, doors=doors)
    made = ray_machines(network, described_as, text, store, zones)
    made.up()
    return made


def json_of(text: str) -> Any:
    """Of what `ray exec` prints, the line that is JSON."""
    [line] = [line for line in text.splitlines() if line.startswith("{")]
    return json.loads(line)


@contextmanager
def load(laptop: Machine, routers: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Clients that know both routers, half of them in the other order."""
    targets = [f"ipv4:{','.join(order)}" for order in (routers, routers[::-1])]
    command = (str(VENV / "bin" / "python"), "-m", "tests.machines.load", *targets)
    clients = subprocess.Popen(
        laptop.command(*command),
        env=laptop.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with clients:
        try:
            assert clients.stdout is not None
            assert clients.stdout.readline() == "running\n"
            yield clients
        finally:
            clients.kill()


def each_again(clients: subprocess.Popen[str]) -> float:
    """Returns after how many seconds each had had another answer."""
    assert clients.stdin is not None
    assert clients.stdout is not None
    began = time.monotonic()
    clients.stdin.write("\n")
    clients.stdin.flush()
    assert clients.stdout.readline() == "again\n"
    return time.monotonic() - began


def what_became(clients: subprocess.Popen[str]) -> dict[str, int]:
    """Of all that they asked, once they have stopped asking."""
    assert clients.stdin is not None
    assert clients.stdout is not None
    clients.stdin.close()
    became: dict[str, int] = json.loads(clients.stdout.read())
    return became


def serving(cluster: RayMachines) -> dict[str, str]:
    """By name, the address of each worker that is given requests."""
    told = cluster.on_head("penstock status --json", "status", check=False)
    if not any(line.startswith("{") for line in told.splitlines()):
        return {}
    members = [each["member"] for each in json_of(told)["workers"] if each.get("serving")]
    return {each["worker"]["worker_id"]: each["worker"]["address"] for each in members}


def until(what: Callable[[], bool], within_s: float) -> float:
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < within_s
    return time.monotonic() - began
