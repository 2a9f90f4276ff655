"""Every part of a cluster replaced under load, by the steps of `penstock up`: real processes, a
real Redis, and 24 clients that know both routers. No request fails, and no answer changes."""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.secrets import create_secrets
from cluster.wire_version import WIRE_VERSION
from deploy.cluster_file.kind import CLUSTER
from deploy.log_dir import placed_log_root
from deploy.placed import PlacedState
from deploy.placement import Wanted, wanted
from deploy.plan import MODULES, Part
from deploy.ready import until_ready
from deploy.served import until_served
from deploy.up import bring_up
from penstock.cli.status import status_json
from penstock.errors import DeadlineExceededError
from tests.deploy.asking import asking
from tests.deploy.local_ray import LocalRay
from tests.deploy.polling import until
from tests.redis_server import free_port, redis_server

pytestmark = [pytest.mark.slow, pytest.mark.prove, pytest.mark.alone, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
OTHER_BUILD = (sys.executable, "-P", str(ROOT / "tests/processes/process_of_version.py"))
READY_S = 600.0
POOLS = [
    {"name": "prompts", "role": "prefill", "minWorkers": 2},
    {"name": "answers", "role": "decode", "minWorkers": 2, "maxSequences": 32},
]
POLICY = """
apiVersion: penstock/v1
kind: RoutingPolicy
metadata: {name: lab}
spec: {placement: {disaggregate: always}}
"""


@dataclass(slots=True, eq=False)
class Operator:
    """Who types `penstock up` of one build and of another."""

    ray: Any
    file: Path
    said: list[str] = field(default_factory=list)

    def up(self, *, raised: int = 0, restart: bool = False) -> dict[str, PlacedState]:
        """`raised`: by how much its wire version is above this one's. Returns how all are."""
        document = CLUSTER.load(self.file)
        everything = [as_build(each, raised) for each in wanted(document, self.file.parent)]
        self.said.clear()
        bring_up(
            self.ray,
            everything,
            document.spec,
            timeout_s=READY_S,
            say=self.said.append,
            restart=restart,
        )
        states = until_ready(self.ray, everything, timeout_s=READY_S, say=self.said.append)
        routers = [each.internal for each in states.values() if each.internal]
        workers = [each.name for each in everything if each.order.part is not Part.ROUTER]
        until_served(routers, workers, self.secrets_file, READY_S)
        return states

    @property
    def secrets_file(self) -> Path:
        return self.file.with_name("secrets.yaml")

    @property
    def replaced(self) -> list[str]:
        return [line.split()[0] for line in self.said if line.endswith(" is replaced.")]


def as_build(one: Wanted, raised: int) -> Wanted:
    order = one.order
    config = dict(order.config)
    if order.part is not Part.ROUTER:
        config |= {"engine": "echo", "num_blocks": 256}
    command = (*OTHER_BUILD, str(raised), MODULES[order.part]) if raised else ()
    version = f"1.{raised}"
    wire_version = WIRE_VERSION + raised
    order = replace(
        order, config=config, command=command, version=version, wire_version=wire_version
    )
    return replace(one, order=order)


@pytest.fixture
def operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Operator]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    create_secrets(tmp_path / "secrets.yaml")
    (tmp_path / "policy.yaml").write_text(POLICY)
    with asyncio.Runner() as runner:
        redis = redis_server()
        store = runner.run(redis.__aenter__())
        ray = LocalRay(tmp_path)
        try:
            yield Operator(ray=ray, file=file_of(tmp_path, store.url))
        finally:
            ray.close()
            runner.run(redis.__aexit__(None, None, None))


def file_of(folder: Path, store: str) -> Path:
    spec = {
        "pools": POOLS,
        "routers": {
            "count": 2,
            "ports": [free_port(), free_port()],
            "internalPorts": [free_port(), free_port()],
        },
        "store": store,
        "secretsFile": "secrets.yaml",
        "policyFile": "policy.yaml",
        "drain": "120s",  # longer than any answer takes here, also beside others' work
    }
    head = {"apiVersion": "penstock/v1", "kind": "Cluster", "metadata": {"name": "lab"}}
    path = folder / "lab.yaml"
    path.write_text(yaml.safe_dump({**head, "spec": spec}))
    return path


def workers(states: dict[str, PlacedState], secrets_file: Path) -> dict[str, int]:
    """As the first router sees them, each with its wire version."""
    status: dict[str, Any] = {}

    def is_told() -> bool:
        with contextlib.suppress(DeadlineExceededError):  # beside others' work
            status.update(status_json(states["router-0"].internal, secrets_file))
        return bool(status)

    until(is_told, "the router says how it stands", within_s=120)
    members = [each["member"]["worker"] for each in status["workers"]]
    return {each["worker_id"]: each["fingerprint"]["wire_version"] for each in members}


def cut_off() -> list[str]:
    """What drains had to end, by all logs."""
    texts = [path.read_text() for path in (placed_log_root() / "lab").glob("*.log*")]
    return [line for text in texts for line in text.splitlines() if "cut off" in line]


@dataclass(frozen=True, slots=True, kw_only=True)
class Roll:
    """All parts replaced, once each."""

    raised: int = 0
    restart: bool = False
    first: str


@pytest.mark.parametrize(
    "rolls",
    [
        [Roll(restart=True, first="prompts-0")],
        [Roll(raised=1, first="router-0"), Roll(first="prompts-0")],
    ],
    ids=["restarted", "upgraded_and_taken_back"],
)
def test_all_parts_are_replaced_under_load(operator: Operator, rolls: list[Roll]) -> None:
    before = operator.up()
    routers = [before[f"router-{number}"].address for number in (0, 1)]
    with asking(routers) as clients:
        for roll in rolls:
            began = time.monotonic()
            after = operator.up(raised=roll.raised, restart=roll.restart)
            took_s = time.monotonic() - began
            assert sorted(operator.replaced) == sorted(after)
            assert operator.replaced[0] == roll.first
            assert {each.pid for each in before.values()}.isdisjoint(
                {each.pid for each in after.values()}
            )
            assert [after[f"router-{number}"].address for number in (0, 1)] == routers
            assert workers(after, operator.secrets_file) == dict.fromkeys(
                ["prompts-0", "prompts-1", "answers-0", "answers-1"], WIRE_VERSION + roll.raised
            )
            again_s = clients.each_again()
            print(f"{', '.join(operator.replaced)}: in {took_s:.0f} s, then {again_s:.1f} s")
            before = after
        became = clients.became()
    print(json.dumps(became))
    assert list(became) == ["right"]
    assert cut_off() == []
