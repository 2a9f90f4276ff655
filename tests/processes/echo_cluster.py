"""Real processes with echo engines: started, asked, and seen as an operator sees them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cluster.authority import Credentials
from cluster.channel import open_channel
from cluster.secrets import load_secrets
from deploy.launcher import LocalCluster, Supervision
from deploy.plan import ClusterPlan
from penstock.aio import AsyncClient
from penstock.v1 import worker_pb2
from tests.router.checkpoint import write_checkpoint

NO_KILLING = Supervision(stopped_s=60.0, wedged_s=60.0, frozen_s=60.0, first_backoff_s=0.1)


@asynccontextmanager
async def running(
    folder: Path,
    *,
    num_decode: int = 1,
    num_prefill: int = 1,
    disaggregate: str = "always",
    return_s: float = 30.0,
    num_blocks: int = 128,
    decode: Mapping[str, Any] | None = None,
) -> AsyncIterator[tuple[LocalCluster, AsyncClient]]:
    plan = ClusterPlan(
        checkpoint=write_checkpoint(folder),
        num_decode=num_decode,
        num_prefill=num_prefill,
        num_blocks=num_blocks,
        drain_s=5.0,
        router={"disaggregate": disaggregate, "return_s": return_s},
        worker={"engine": "echo", "lease_s": 1.0},
        decode=decode or {},
    )
    async with LocalCluster(plan, supervision=NO_KILLING) as cluster:
        client = AsyncClient(cluster.address)
        try:
            yield cluster, client
        finally:
            await client.close()


async def status(cluster: LocalCluster) -> dict[str, worker_pb2.WorkerStatus]:
    secrets = load_secrets(cluster.secrets_file)
    credentials = Credentials(secrets.authority)
    async with open_channel(
        cluster.internal, secrets.cluster_token, credentials=credentials
    ) as channel:
        request = worker_pb2.StatusRequest()
        reply = await channel.unary("penstock.v1.Cluster", "Status", request, timeout_s=10)
    return {worker.member.worker.worker_id: worker for worker in reply.workers}


async def until(condition: Callable[[], Any], within_s: float) -> float:
    """Waits for what other processes bring about; returns how long it took."""
    started = time.monotonic()
    async with asyncio.timeout(within_s):
        while not await condition():  # noqa: ASYNC110 - of other processes, from outside
            await asyncio.sleep(0.02)
    return time.monotonic() - started


async def ask(client: AsyncClient, prompt: list[int], num: int) -> list[int]:
    options = {"token_ids": prompt, "temperature": 0.0, "max_tokens": num, "ignore_eos": True}
    answer = await client.generate(timeout=30, **options).result()
    return list(answer.token_ids)


async def is_all_free(cluster: LocalCluster) -> bool:
    loads = [worker.load for worker in (await status(cluster)).values()]
    return all(
        load.num_free_blocks == load.num_blocks > 0 and not load.num_quarantined_blocks
        for load in loads
    )
