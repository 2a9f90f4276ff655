"""Every process of a cluster answers what an operator's tool asks."""

from pathlib import Path

import pytest

from cluster.channel import open_channel
from cluster.errors import Unauthenticated
from penstock.v1 import worker_pb2
from tests.router.fake_worker import TOKEN
from tests.workers.local_cluster import LocalCluster


async def diagnose(address: str, service: str, token: str | None) -> worker_pb2.DiagnoseResponse:
    async with open_channel(address, token) as channel:
        request = worker_pb2.DiagnoseRequest(measure_memory=True)
        return await channel.unary(f"penstock.v1.{service}", "Diagnose", request, timeout_s=5)


async def test_each_process_says_what_it_is_and_who_may_reach_it(
    checkpoint: Path, tmp_path: Path
) -> None:
    count = {"digest": "count"}
    async with LocalCluster(checkpoint, tmp_path, decode=[count]) as cluster:
        addresses = {running.name: running.address for running in cluster.workers}
        for name, address in addresses.items():
            facts = await diagnose(address, "Worker", TOKEN)
            assert address in facts.listening
            assert facts.run_dir.path == str(tmp_path)
            assert facts.secrets_mode == 0o600
            assert facts.checks_content == (name == "prefill-0")
            assert facts.memory_bytes_per_second > 0
        facts = await diagnose(cluster.address, "Cluster", TOKEN)
        assert cluster.address in facts.listening
        assert not facts.HasField("run_dir")
        for address, service in ((addresses["decode-0"], "Worker"), (cluster.address, "Cluster")):
            with pytest.raises(Unauthenticated):
                await diagnose(address, service, None)
