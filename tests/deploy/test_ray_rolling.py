"""A cluster on Ray whose every part is replaced under load: restarted, upgraded to a build that
speaks a newer wire version, and taken back. No request fails, and no answer changes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.wire_version import WIRE_VERSION
from deploy.cluster_file.local import SHIPPED_MODEL
from tests.deploy.asking import Clients, asking
from tests.deploy.builds import Builds
from tests.deploy.ray_operator import MACHINES, UP, Operator, left_of, operating
from tests.redis_server import free_port

pytestmark = [pytest.mark.slow, pytest.mark.prove, pytest.mark.alone, pytest.mark.timeout(2400)]

ROLL_S = 1200
POOLS = [
    {"name": "prompts", "role": "prefill", "kvPool": "16MiB", "minWorkers": 2},
    {
        "name": "answers",
        "role": "decode",
        "kvPool": "32MiB",
        "maxSequences": 16,
        "minWorkers": 2,
    },
]
POLICY = """
apiVersion: penstock/v1
kind: RoutingPolicy
metadata: {name: lab}
spec: {placement: {disaggregate: always}}
"""
WORKERS = {"prompts-0", "prompts-1", "answers-0", "answers-1"}


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builds:
    made = Builds(folder=tmp_path / "builds")
    made.make("1.0")
    made.make("1.1", raised=1)
    made.install("1.0")
    monkeypatch.setenv("PYTHONPATH", str(made.installed))
    return made


@pytest.fixture
def operator(builds: Builds, tmp_path: Path) -> Iterator[Operator]:
    with operating(tmp_path, MACHINES) as found:
        yield found
        assert found.penstock("down").returncode == 0
        assert left_of(found.called("lab")) == []


def file_of(operator: Operator) -> Path:
    routers = {
        "count": 2,
        "ports": [free_port(), free_port()],
        "internalPorts": [free_port(), free_port()],
    }
    policy = operator.home / "policy.yaml"
    policy.write_text(POLICY)
    return operator.write(
        checkpoint=str(SHIPPED_MODEL),  # else each build brings its own, elsewhere
        pools=POOLS,
        routers=routers,
        drain="120s",
        policyFile=str(policy),
    )


def up(operator: Operator, *arguments: str | Path) -> tuple[dict[str, Any], str]:
    ended = operator.penstock(*UP, *arguments, timeout_s=ROLL_S)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout), ended.stderr


def pids(said: dict[str, Any]) -> set[int]:
    return {each["pid"] for each in said["processes"].values()}


def replaced(told: str) -> list[str]:
    return [line.split()[0] for line in told.splitlines() if line.endswith(" is replaced.")]


def wire_versions(operator: Operator) -> set[int]:
    status = json.loads(operator.penstock("status", "--json").stdout)
    members = [each["member"]["worker"] for each in status["workers"]]
    assert {each["worker_id"] for each in members} == WORKERS
    return {each["fingerprint"]["wire_version"] for each in members}


def rolled(
    operator: Operator, clients: Clients, before: dict[str, Any], *arguments: str | Path
) -> tuple[dict[str, Any], list[str]]:
    """All parts, each once; returns in which order."""
    after, told = up(operator, *arguments)
    print(told)
    print(f"each had another answer within {clients.each_again():.1f} s")
    assert pids(before).isdisjoint(pids(after))
    assert after["routers"] == before["routers"]
    turn = replaced(told)
    assert sorted(turn) == sorted(after["processes"])
    return after, turn


def test_all_parts_are_restarted_upgraded_and_taken_back_under_load(
    operator: Operator, builds: Builds
) -> None:
    file = file_of(operator)
    said, _ = up(operator, file)
    with asking(said["routers"]) as clients:
        said, turn = rolled(operator, clients, said, file, "--restart")
        assert turn[4:] == ["router-0", "router-1"]
        assert wire_versions(operator) == {WIRE_VERSION}

        builds.install("1.1")
        said, turn = rolled(operator, clients, said, file)
        assert turn[:2] == ["router-0", "router-1"]
        assert wire_versions(operator) == {WIRE_VERSION + 1}

        builds.install("1.0")
        said, turn = rolled(operator, clients, said, file)
        assert turn[4:] == ["router-0", "router-1"]
        assert wire_versions(operator) == {WIRE_VERSION}

        became = clients.became()
        print(became)
        assert list(became) == ["right"]
