"""Workers are killed and stopped at random under load: no answer is lost, none is wrong."""

import asyncio
import os
import random
import signal
import time
from pathlib import Path

import pytest

from deploy.launcher import LocalCluster, Supervision
from deploy.plan import ClusterPlan
from penstock.aio import AsyncClient
from tests.processes.echo_cluster import status, until
from tests.router.checkpoint import write_checkpoint
from tests.workers.answers import expected, prompt_of

WORKERS = ["decode-0", "decode-1", "prefill-0", "prefill-1"]
SUPERVISION = Supervision(frozen_s=2.0, first_backoff_s=0.1)


async def ask(client: AsyncClient, rng: random.Random) -> bool:
    """One request; whether it was let to end."""
    prompt = [*prompt_of(rng.randrange(6), rng.choice([10, 48, 90])), rng.randrange(250)]
    num = rng.randrange(1, 200)
    received: list[int] = []
    options = {"temperature": 0.0, "max_tokens": num, "ignore_eos": True}
    async with client.generate(token_ids=prompt, timeout=60, **options) as stream:
        async for chunk in stream:
            received.extend(chunk.token_ids)
            if rng.random() < 0.002:
                break
        else:
            assert received == expected(prompt, num)
            return True
    assert received == expected(prompt, len(received))
    return False


async def all_serve(cluster: LocalCluster) -> bool:
    workers = await status(cluster)
    return all(name in workers and workers[name].serving for name in WORKERS)


async def hurt(cluster: LocalCluster, rng: random.Random, *, until_time: float) -> int:
    """One blow at a time: the next one when everyone serves again."""
    num_blows = 0
    while time.monotonic() < until_time:
        pid = cluster.children[rng.choice(WORKERS)].pid
        os.kill(pid, rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP]))
        num_blows += 1

        async def is_replaced(pid: int = pid) -> bool:
            is_gone = all(child.pid != pid for child in cluster.children.values())
            return is_gone and await all_serve(cluster)

        await until(is_replaced, 60.0)
    return num_blows


async def chaos(folder: Path, *, seconds: float, concurrency: int) -> None:
    plan = ClusterPlan(
        checkpoint=write_checkpoint(folder),
        num_decode=2,
        num_prefill=2,
        num_blocks=256,
        drain_s=5.0,
        worker={"engine": "echo", "lease_s": 1.0},
    )
    async with LocalCluster(plan, supervision=SUPERVISION) as cluster:
        client = AsyncClient(cluster.address)
        rng = random.Random(7)
        until_time = time.monotonic() + seconds
        num_asked = 0

        async def keep_asking(seed: int) -> None:
            nonlocal num_asked
            own = random.Random(seed)
            while time.monotonic() < until_time:
                await ask(client, own)
                num_asked += 1

        async with asyncio.TaskGroup() as group:
            hurting = group.create_task(hurt(cluster, rng, until_time=until_time))
            for seed in range(concurrency):
                group.create_task(keep_asking(seed))
        await client.close()
        print(f"{num_asked} answers, {hurting.result()} blows")
        assert num_asked > seconds

        async def is_all_free() -> bool:
            loads = [worker.load for worker in (await status(cluster)).values()]
            return all(load.num_free_blocks == load.num_blocks > 0 for load in loads)

        await until(is_all_free, 10.0)


@pytest.mark.slow
async def test_seconds_of_blows(tmp_path: Path) -> None:
    await chaos(tmp_path, seconds=8, concurrency=4)


@pytest.mark.prove
@pytest.mark.alone
@pytest.mark.timeout(900)
async def test_five_minutes_of_blows(tmp_path: Path) -> None:
    await chaos(tmp_path, seconds=300, concurrency=8)
