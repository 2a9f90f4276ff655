"""What routers hear of the pairs of real workers."""

from pathlib import Path

import pytest

from cluster.types import Direction, PairReport, Role
from tests.workers.local_cluster import LocalCluster


def pairs_of(cluster: LocalCluster, worker: str) -> tuple[PairReport, ...]:
    statuses = cluster.router.pool.statuses(cluster.router.clock())
    reports = {status.member.worker.worker_id: status.report for status in statuses}
    return next(report.pairs for name, report in reports.items() if name == worker)


@pytest.mark.slow
async def test_both_ends_of_a_pair_report_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    async with LocalCluster(checkpoint, tmp_path, disaggregate="always") as cluster:
        assert [running.worker.member.role for running in cluster.prefill] == [Role.PREFILL]
        for number in range(3):
            await cluster.generate(text=f"a prompt of its own, number {number}")

        def num_transfers(name: str) -> int:
            return sum(pair.num_transfers for pair in pairs_of(cluster, name))

        # The two report at different times, and their pair is probed besides.
        await cluster.until(lambda: num_transfers("decode-0") == num_transfers("prefill-0") >= 3)
        received = next(
            p for p in pairs_of(cluster, "decode-0") if p.direction is Direction.RECEIVED
        )
        sent = next(p for p in pairs_of(cluster, "prefill-0") if p.direction is Direction.SENT)
    assert (received.peer, sent.peer) == ("prefill-0", "decode-0")
    assert received.num_bytes == sent.num_bytes > 0
    assert received.num_transfers == sent.num_transfers == sent.write_seconds.counts[-1]
    assert received.transport == sent.transport == "memory"
    assert (received.failures, sent.failures) == ((), ())
