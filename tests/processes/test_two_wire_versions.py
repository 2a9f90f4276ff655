"""A cluster in the middle of an upgrade: half of its workers speak the wire version before. All of
them serve, and KV moves within a version only."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.wire_version import WIRE_VERSION
from deploy.launcher import LocalCluster
from deploy.plan import MODULES, ClusterPlan, Part
from tests.processes.streams import Streams
from tests.router.checkpoint import write_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

WORKER = (sys.executable, "-P", str(Path(__file__).with_name("worker_of_version.py")))
VERSIONS = {
    f"{role}-{number}": WIRE_VERSION - number for role in ("prefill", "decode") for number in (0, 1)
}


def plan(folder: Path) -> ClusterPlan:
    return ClusterPlan(
        checkpoint=write_checkpoint(folder),
        model="echo",
        num_prefill=2,
        num_decode=2,
        num_blocks=256,
        drain_s=5.0,
        router={"disaggregate": "always"},
        worker={"engine": "echo"},
        commands={part: (*WORKER, MODULES[part]) for part in (Part.PREFILL, Part.DECODE)},
    )


def penstock_status(cluster: LocalCluster, *options: str) -> str:
    where = ["--address", cluster.address, "--secrets-file", str(cluster.secrets_file)]
    command = [sys.executable, "-m", "penstock", "status", *where, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def pairs(status: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Between whom KV moved, or failed to."""
    for each in status["workers"]:
        for pair in each["load"].get("pairs", []):
            yield each["member"]["worker"]["worker_id"], pair["peer"]


@pytest.mark.prove
async def test_both_serve_and_hand_over_within_their_version(tmp_path: Path) -> None:
    async with LocalCluster(plan(tmp_path)) as cluster:
        streams = Streams([cluster.address])
        async with streams.running():
            await streams.in_the_middle()
            await streams.each_again()
        assert (streams.lost, streams.wrong) == ([], [])
        status = json.loads(penstock_status(cluster, "--json"))
        told = {
            each["member"]["worker"]["worker_id"]: each["member"]["worker"]["fingerprint"]
            for each in status["workers"]
        }
        assert {name: each["wire_version"] for name, each in told.items()} == VERSIONS
        moved = set(pairs(status))
        assert {VERSIONS[one] for one, _ in moved} == set(VERSIONS.values()), "both handed over"
        assert [pair for pair in moved if VERSIONS[pair[0]] != VERSIONS[pair[1]]] == []
        counters = [each["load"]["counters"] for each in status["workers"]]
        assert sum(each.get("hand_over_recomputes", 0.0) for each in counters) == 0
        assert all(each.get("pairs_refused", 0.0) == 0 for each in counters)
        said = f"wire versions {WIRE_VERSION - 1} at decode-1, prefill-1; {WIRE_VERSION} at"
        assert said in penstock_status(cluster)
