"""What a cluster costs that nobody asks anything: processors, for the sake of its own health."""

import os
from pathlib import Path

import pytest

from deploy.cluster_file.local import SHIPPED_MODEL
from deploy.launcher import LocalCluster
from deploy.plan import ClusterPlan
from tests.deploy.cpu_time import MOST, QUIET_S, shares

pytestmark = [pytest.mark.slow, pytest.mark.prove, pytest.mark.alone, pytest.mark.timeout(240)]


async def test_a_quiet_cluster_costs_next_to_nothing(tmp_path: Path) -> None:
    plan = ClusterPlan(checkpoint=SHIPPED_MODEL, num_blocks=256, drain_s=1.0)
    async with LocalCluster(plan, run_dir_parent=tmp_path) as cluster:
        pids = {name: child.pid for name, child in cluster.children.items()}
        found = await shares({"launcher": os.getpid(), **pids}, QUIET_S)
        assert {name: child.pid for name, child in cluster.children.items()} == pids
    print(found)
    del found["router"]  # is woken by each heartbeat and report: shown, not judged
    assert max(found.values()) < MOST, found
