"""Clusters in which KV is lent, and who lends what there."""

from pathlib import Path
from typing import Any

from cluster.channel import open_channel
from penstock.v1 import worker_pb2 as pb
from tests.kv_transfer.faulty_transport import FaultyTransport
from tests.router.fake_worker import TOKEN
from tests.workers.decoding import decode
from tests.workers.fetching import PROMPT, request, told, warm
from tests.workers.local_cluster import LocalCluster, Running

LEASE_S = 0.4


def cluster_of(
    checkpoint: Path, tmp_path: Path, door: str = "memory", **settings: Any
) -> LocalCluster:
    worker = {"lease_s": LEASE_S, "probe_tokens": 0, **settings}
    return LocalCluster(
        checkpoint,
        tmp_path,
        decode=[worker, worker],
        prefill=[worker],
        door=door,
        wrap_transport=FaultyTransport,
    )


async def lender_of(cluster: LocalCluster, what: str) -> Running:
    """Which of its workers lends this; it has the prompt cached, where that matters."""
    if what == "prompt":
        return cluster.prefill[0]
    await warm(cluster.decode[0])
    return cluster.decode[0]


async def borrow(
    what: str, lender: pb.WorkerAddress, receiver: Running, prompt: list[int] = PROMPT
) -> Any:
    """Has a worker borrow of whoever is there. Returns what it answers."""
    if what == "pattern":
        probe = pb.ProbeRequest(source=lender, num_tokens=32)
        async with open_channel(receiver.address, TOKEN) as channel:
            return await channel.unary("penstock.v1.Worker", "Probe", probe, timeout_s=20)
    asked = request(prompt)
    place = asked.prefill if what == "prompt" else asked.source
    place.CopyFrom(told(receiver, lender))
    return await decode(receiver, asked)
