"""A worker takes no KV from one that speaks another wire version, whoever sends it there: it
computes the prompt, and the answer is the same."""

from pathlib import Path
from typing import Any

import pytest

from cluster.channel import open_channel
from cluster.errors import FingerprintMismatch
from cluster.wire_version import WIRE_VERSION
from penstock.v1 import worker_pb2
from tests.router.fake_worker import TOKEN
from tests.workers.answers import expected
from tests.workers.decoding import decode
from tests.workers.fetching import PROMPT, address, counted, ids, request, told, warm
from tests.workers.local_cluster import LocalCluster, Running


def older(running: Running) -> worker_pb2.WorkerAddress:
    """As one would say it that speaks the version before."""
    said = address(running)
    said.fingerprint.wire_version = WIRE_VERSION - 1
    return said


async def granted(source: Running, receiver: worker_pb2.WorkerAddress) -> None:
    """Leave to write a probe there."""
    start = worker_pb2.LendStart(borrower=receiver, probe_tokens=16)
    grant = worker_pb2.Grant(incarnation=receiver.incarnation, epoch=1, stop_token=16)
    async with (
        open_channel(source.address, TOKEN) as channel,
        channel.exchange("penstock.v1.Worker", "Lend", timeout_s=20) as call,
    ):
        await call.send(worker_pb2.LendRequest(start=start))
        await call.receive()
        await call.send(worker_pb2.LendRequest(grant=grant))
        await call.receive()


async def test_a_hand_over_from_another_version_is_refused_and_computed_here(
    checkpoint: Path, tmp_path: Path, caplog: Any
) -> None:
    async with LocalCluster(checkpoint, tmp_path) as cluster:
        [receiver], [prefill] = cluster.decode, cluster.prefill
        asked = request()
        asked.prefill.CopyFrom(told(receiver, older(prefill)))
        assert ids(await decode(receiver, asked)) == expected(PROMPT, 8)
        assert counted(receiver, "hand_over_recomputes") == 1
        assert f"wire_version: {WIRE_VERSION} and {WIRE_VERSION - 1}" in caplog.text


async def test_a_prefix_of_another_version_is_computed_here(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with LocalCluster(checkpoint, tmp_path, decode=[{}, {}], prefill=[]) as cluster:
        source, receiver = cluster.decode
        await warm(source)
        asked = request()
        asked.source.CopyFrom(told(receiver, older(source)))
        assert ids(await decode(receiver, asked)) == expected(PROMPT, 8)
        assert counted(receiver, "fetch_failures") == 1
        assert counted(source, "lent_tokens") == 0


async def test_a_writer_refuses_a_receiver_of_another_version(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with LocalCluster(checkpoint, tmp_path, decode=[{}, {}], prefill=[]) as cluster:
        source, receiver = cluster.decode
        with pytest.raises(FingerprintMismatch, match="wire_version"):
            await granted(source, older(receiver))
        await cluster.idle()
