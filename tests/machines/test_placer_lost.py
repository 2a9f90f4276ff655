"""What places fails, and what serves does not: under load the machine of Ray's head is lost and
comes back, and a machine with a router, workers and clients is cut off from all others and healed,
sooner and later than Ray gives it up. One cluster takes it all, one after the other."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.machines.lives import blocks_held, incarnations, living, pools
from tests.machines.network import Machine, Network
from tests.machines.ray_up import RayMachines
from tests.machines.whole_cluster import (
    UP,
    a_cluster,
    each_again,
    json_of,
    load,
    pool,
    until,
    what_became,
)

pytestmark = [pytest.mark.prove, pytest.mark.alone, pytest.mark.timeout(1200)]

# Nothing of the cluster lies with Ray's head, nor with the Redis.
ZONES = {"head": "a", "two": "b", "three": "b"}
AWAY_S = 180  # thrice as long as Ray's processes wait for their head unless told otherwise
RAYS_PATIENCE_S = 100  # with a machine that does not answer; it needs less
SETTLE_S = 240


class Running(NamedTuple):
    cluster: RayMachines
    said: dict[str, Any]  # by `penstock up`

    @property
    def head(self) -> Machine:
        return self.cluster.machines[0]

    def up_again(self) -> dict[str, Any]:
        return dict(json_of(self.cluster.on_head(UP, "penstock up again")))

    def status(self) -> dict[str, Any]:
        told = self.cluster.on_head("penstock status --json", "status", check=False)
        is_told = any(line.startswith("{") for line in told.splitlines())
        return dict(json_of(told)) if is_told else {"workers": []}

    def has_one_life_each(self) -> bool:
        """Whether each process lives once, all workers serve, and nothing of others is left."""
        alive, names = living(self.cluster.machines), self.said["processes"]
        if sorted(alive) != sorted(names) or any(len(where) > 1 for where in alive.values()):
            return False
        serving = incarnations(self.status())
        return len(serving) == len(names) - 2 and serving == pools(self.cluster.machines)


@pytest.fixture(scope="module")
def running(
    shared_machines: Network, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    secrets = tmp_path_factory.mktemp("secrets") / "secrets.yaml"
    groups = [
        pool(f"{role}-b", role, labels={"zone": "b"}, minWorkers=2, resources={"cpus": 0.25})
        for role in ("prefill", "decode")
    ]
    cluster = a_cluster(shared_machines, groups, secrets, ZONES, is_open=True, doors="b")
    said = json_of(cluster.on_head(UP, "penstock up"))
    assert cluster.machines[0].address not in {
        each["machine"] for each in said["processes"].values()
    }
    yield Running(cluster, said)
    cluster.on_head("penstock down", "penstock down")
    for machine in cluster.machines:
        assert not [path for path in machine.files() if path.startswith("/dev/shm/penstock")]


def test_workers_serve_on_without_the_head_and_it_finds_them_when_it_is_back(
    running: Running,
) -> None:
    seconds = running.cluster.seconds
    with load(running.cluster.laptop, running.said["routers"]) as clients:
        lost_at = time.monotonic()
        running.head.lose()
        while time.monotonic() - lost_at < AWAY_S:
            each_again(clients)
        running.head.power_on()
        running.cluster.up()
        seconds["head away"] = time.monotonic() - lost_at
        for _ in range(2):
            assert running.up_again()["processes"] == running.said["processes"]
        each_again(clients)
        became = what_became(clients)
    tell(running, became)
    assert set(became) == {"right"}
    assert running.has_one_life_each()


@pytest.mark.parametrize("for_s", [20, RAYS_PATIENCE_S])
def test_a_machine_that_was_cut_off_leaves_one_life_of_each(running: Running, for_s: float) -> None:
    before = running.up_again()["processes"]
    at = before["router-1"]["machine"]
    [cut] = [each for each in running.cluster.machines if each.address == at]
    seconds, routers = running.cluster.seconds, running.said["routers"]
    with load(running.cluster.laptop, routers) as clients, load(cut, routers) as cut_clients:
        cut_at = time.monotonic()
        cut.cut_off()
        seconds[f"answers, cut for {for_s}"] = each_again(clients)
        while time.monotonic() - cut_at < for_s:
            each_again(clients)
        cut.heal()
        seconds[f"one life each, cut for {for_s}"] = until(running.has_one_life_each, SETTLE_S)
        each_again(clients)
        each_again(cut_clients)
        became, became_there = what_became(clients), what_became(cut_clients)
    for each in (became, became_there):
        tell(running, each)
        assert set(each) <= {"right", "interrupted"}
    after = running.up_again()["processes"]
    assert after == before or for_s > 20
    assert blocks_held(running.status()) == {}


def tell(running: Running, became: dict[str, int]) -> None:
    seconds = {name: round(each, 1) for name, each in running.cluster.seconds.items()}
    print(became, seconds)
