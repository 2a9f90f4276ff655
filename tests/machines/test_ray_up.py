"""From three bare machines to a Ray cluster and back, unattended."""

import pytest

from tests.machines.network import Network
from tests.machines.ray_up import RayMachines, left_on, ray_machines, start_redis

pytestmark = [pytest.mark.prove, pytest.mark.alone, pytest.mark.timeout(600)]

OPEN = ("bash", "-c", "ss -Htln | awk '{print $4}'")


def check_safe(cluster: RayMachines) -> None:
    """The dashboard is nobody's but the head's, and who has no token is refused."""
    head = cluster.machines[0]
    listening = head.run(*OPEN).stdout.split()
    assert "127.0.0.1:8265" in listening
    assert f"{head.address}:6379" in listening or "*:6379" in listening
    told = head.run("env", "RAY_AUTH_MODE=disabled", *asking(cluster), check=False)
    assert told.returncode
    assert "token" in told.stdout + told.stderr


def asking(cluster: RayMachines) -> tuple[str, ...]:
    """Asks the head for its machines, as somebody who only has its address."""
    ray = cluster.laptop.environment["PATH"].split(":")[0] + "/ray"
    return ("timeout", "40", ray, "status", "--address", f"{cluster.machines[0].address}:6379")


def test_three_machines_come_up_and_go_down(machines: Network) -> None:
    cluster = ray_machines(
        machines, "kind: Cluster\n", "cluster_token: planted\n", start_redis(machines)
    )
    cluster.up()
    for machine in cluster.machines:
        assert [process.name() for process in machine.processes()].count("raylet") == 1
        memory = machine.run("df", "--output=used", "-B1", "/dev/shm").stdout.split()[1]
        assert int(memory) <= 80 * 2**20
        for name in (".ray/auth_token", "penstock/secrets.yaml"):
            assert (machine.home / name).stat().st_mode & 0o777 == 0o600
    check_safe(cluster)
    cluster.down()
    for machine in cluster.machines:
        assert machine.processes() == [], machine.name
        assert left_on(machine) == [], machine.name
    print({name: round(seconds, 1) for name, seconds in cluster.seconds.items()})
