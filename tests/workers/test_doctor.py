"""The doctor's visit to real workers, some of whose ways do not hold."""

from pathlib import Path
from typing import Any

import pytest

from cluster.channel import open_channel
from deploy.doctor.examination import DoctorReport, Examination
from deploy.doctor.finding import Severity
from penstock.v1 import worker_pb2
from tests.kv_transfer.faulty_transport import Fault, FaultPlan, FaultyTransport
from tests.router.fake_worker import TOKEN
from tests.workers.local_cluster import LocalCluster

pytestmark = pytest.mark.slow


async def visit(cluster: LocalCluster, timeout_s: float = 20.0) -> DoctorReport:
    async with open_channel(cluster.address, TOKEN) as channel:
        status: Any = await channel.unary(
            "penstock.v1.Cluster", "Status", worker_pb2.StatusRequest(), timeout_s=5
        )
    secrets, said = cluster.directory / "secrets.yaml", []
    async with Examination(cluster.address, secrets, say=said.append) as examination:
        report = await examination.report(status, [], timeout_s=timeout_s)
    assert said, "whoever watches sees what it is doing"
    return report


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault.CORRUPT, "bytes do not arrive as they were sent"),
        (Fault.DROP, "bytes do not arrive as they were sent"),
        (Fault.DISCONNECT, "no bytes move"),
    ],
)
async def test_the_pair_whose_bytes_are_disturbed_fails_and_no_other(
    checkpoint: Path, tmp_path: Path, fault: Fault, words: str
) -> None:
    async with LocalCluster(
        checkpoint, tmp_path, prefill=[{}, {}], wrap_transport=FaultyTransport
    ) as cluster:
        assert {pair.severity for pair in (await visit(cluster)).pairs} == {Severity.PASS}
        sick, decode = cluster.prefill[0], cluster.decode[0].worker.member.worker.incarnation
        sick.transport.disturb(decode, FaultPlan(shares={fault: 1.0}), sick.memory)
        report = await visit(cluster)
        assert {pair.source: pair.severity for pair in report.pairs} == {
            "prefill-0": Severity.FAIL,
            "prefill-1": Severity.PASS,
        }
        [finding] = report.pairs[0].findings
        assert words in finding.what
        assert finding.fix
        await cluster.idle()


async def test_a_worker_without_a_free_block_is_measured_later(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with LocalCluster(checkpoint, tmp_path) as cluster:
        pool = cluster.decode[0].pool
        taken = pool.allocate(pool.num_blocks)
        report = await visit(cluster)
        pool.release(taken)
        assert report.pairs[0].severity is Severity.WARN
        assert "too busy" in report.pairs[0].findings[0].what
