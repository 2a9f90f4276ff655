"""A whole cluster on machines that `ray up` made: two routers, two workers of each role, a Redis on
a machine of its own, all of it ruled from a laptop."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.secrets import load_secrets
from tests.machines.network import ROOT, Machine, Network
from tests.machines.ray_up import PASSWORD, TRIES, VENV, ZONES, RayMachines, left_on
from tests.machines.watch import open_ports, our_ports, told_secrets
from tests.machines.whole_cluster import (
    UP,
    a_cluster,
    each_again,
    json_of,
    load,
    pool,
    serving,
    until,
    what_became,
)
from tests.manifests.kubernetes_files import by_kind

pytestmark = [pytest.mark.prove, pytest.mark.alone, pytest.mark.timeout(900)]

ANSWER = "Return the number of items in a container."  # as 'penstock serve' gives it
KUBERAY = ROOT / "deploy" / "kuberay" / "cluster.yaml"


def script_of_the_job(cluster: RayMachines) -> str:
    """What the Job of deploy/kuberay runs, for this cluster."""
    job = by_kind(list(yaml.safe_load_all(KUBERAY.read_text())), "Job")
    [script] = job["spec"]["template"]["spec"]["containers"][0]["args"]
    script = script.replace("penstock-head-svc", cluster.machines[0].address)
    script = script.replace("/etc/penstock/cluster/cluster.yaml", "~/penstock/cluster.yaml")
    return f"export RAY_AUTH_MODE=token\n{script}"


def transports(status: dict[str, Any], machine_of: dict[str, str]) -> dict[bool, set[str]]:
    """By which KV travels: within a machine, and between machines."""
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for worker in status["workers"]:
        here = machine_of[worker["member"]["worker"]["worker_id"]]
        for pair in worker["load"]["pairs"]:
            found[machine_of[pair["peer"]] == here].add(pair["transport"])
    return found


def test_from_bare_machines_to_the_first_answer_and_back(machines: Network, tmp_path: Path) -> None:
    pools = [
        pool(f"{role}-{host}", role, labels={"host": host})
        for role, host in itertools.product(("prefill", "decode"), ("two", "three"))
    ]
    cluster = a_cluster(machines, pools, tmp_path / "secrets.yaml")
    said = json_of(cluster.on_head(UP, "penstock up"))
    machine_of = {name: each["machine"] for name, each in said["processes"].items()}
    assert len({machine_of["router-0"], machine_of["router-1"]}) == 2
    machine_at = {machine.address: machine for machine in cluster.machines}
    for name, router in zip(("router-0", "router-1"), said["routers"], strict=True):
        assert router == "127.0.0.1:50051"  # its machine's own: nobody else needs to be let in
        ask = f"penstock generate -a {router} 'What does len do?'"
        assert ANSWER in machine_at[machine_of[name]].run("bash", "-ic", ask).stdout
    status = json_of(cluster.on_head("penstock status --json", "status"))
    assert transports(status, machine_of) == {True: {"shared_memory"}, False: {"tcp"}}
    assert status["exposed"] == []
    assert open_ports(cluster.machines) == []
    operate_from_afar(cluster, said["internal"])
    strangers_stay_out(cluster)
    secrets = load_secrets(tmp_path / "secrets.yaml")
    assert told_secrets(cluster.machines, secrets, PASSWORD) == []
    again = cluster.on_head(UP, "penstock up again")
    assert json_of(again)["processes"] == said["processes"]
    job = ("bash", "-ec", script_of_the_job(cluster))
    for attempt in range(TRIES):
        told = cluster.laptop.run(*job, timeout_s=200, check=attempt == TRIES - 1)
        if not told.returncode:
            break
    assert "Nothing is to be changed." in told.stderr
    assert cluster.laptop.processes() == []

    cluster.on_head("penstock down", "penstock down")
    for machine in cluster.machines:
        assert not [path for path in machine.files() if path.startswith("/dev/shm/penstock")]
    cluster.down()
    for machine in cluster.machines:
        assert machine.processes() == [], machine.name
        assert left_on(machine) == [], machine.name
    print({name: round(seconds, 1) for name, seconds in cluster.seconds.items()})


def operate_from_afar(cluster: RayMachines, internal: list[str]) -> None:
    """The laptop has the secrets, and an address."""

    def penstock(*command: str, check: bool = True) -> str:
        given = ("-a", internal[1], "--secrets-file", secrets_of(cluster.laptop))
        return cluster.laptop.run("penstock", *command, *given, timeout_s=120, check=check).stdout

    examined = json.loads(penstock("doctor", "--json"))
    assert {each["transport"] for each in examined["pairs"]} == {"shared_memory", "tcp"}
    checks = {each["check"]: each["severity"] for each in examined["findings"]}
    assert checks["encryption"] == "pass"
    penstock("drain", "prefill-two-0", "--wait")
    seen = json.loads(penstock("status", "--json", check=False))
    assert [each["serving"] for each in seen["workers"]].count(False) == 1
    penstock("undrain", "prefill-two-0")
    penstock("flip", "prefill-two-0", "--to", "decode", "--wait")
    penstock("flip", "prefill-two-0", "--to", "prefill", "--wait")


def secrets_of(machine: Machine) -> str:
    """Where they lie there."""
    return f"{machine.environment['HOME']}/penstock/secrets.yaml"


def strangers_stay_out(cluster: RayMachines) -> None:
    """Whoever reaches them in clear text, or without a certificate."""
    addresses = [each for machine in cluster.machines for each in our_ports(machine)]
    # A router's internal one; a worker's, and its KV's.
    assert len(addresses) == 2 + 2 * 4, addresses
    command = (str(VENV / "bin" / "python"), "-m", "tests.machines.stranger")
    secrets = secrets_of(cluster.laptop)
    told = cluster.laptop.run(*command, secrets, *addresses, timeout_s=120)
    assert told.stdout == ""


def test_machines_are_lost_under_load(machines: Network, tmp_path: Path) -> None:
    """Each zone has both roles, and room for them on one machine."""
    pools = [
        pool(f"{role}-{zone}", role, labels={"zone": zone})
        for role, zone in itertools.product(("prefill", "decode"), "ab")
    ]
    zones = {**ZONES, "four": "b"}
    cluster = a_cluster(machines, pools, tmp_path / "secrets.yaml", zones, is_open=True)
    said = json_of(cluster.on_head(UP, "penstock up"))
    on = {name: each["machine"] for name, each in said["processes"].items()}
    machine_at = {each.address: each for each in cluster.machines}
    lost = machine_at.pop(on["decode-b-0"])
    with load(cluster.laptop, said["routers"]) as clients:
        lost.lose()
        cluster.seconds["answers without workers"] = each_again(clients)

        def placed_again() -> bool:
            found = serving(cluster)
            away = [each for each in found.values() if each.startswith(f"{lost.address}:")]
            return len(found) == len(pools) and not away

        cluster.seconds["placed again"] = until(placed_again, 240)
        # Then that of a router, if it was not the same: its streams are cut, with a true count.
        for name in ("router-0", "router-1"):
            if on[name] in machine_at and on[name] != cluster.machines[0].address:
                machine_at.pop(on[name]).lose()
                cluster.seconds["answers without a router"] = each_again(clients)
        became = what_became(clients)
    print(on, became, {name: round(seconds, 1) for name, seconds in cluster.seconds.items()})
    assert set(became) <= {"right", "interrupted"}
    assert became["right"] > 100
