"""A step loop that misses a wake-up says so, though its process answers and its engine is well."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from deploy.launcher import LocalCluster
from deploy.plan import ClusterPlan, Part
from penstock.aio import AsyncClient
from tests.processes.echo_cluster import NO_KILLING, ask, status, until
from tests.router.checkpoint import write_checkpoint
from tests.workers.answers import expected, prompt_of

pytestmark = pytest.mark.slow
DEAF = (sys.executable, "-m", "tests.processes.deaf_worker")


async def test_a_loop_that_misses_a_wake_up_with_work_queued_is_not_serving(
    tmp_path: Path,
) -> None:
    plan = ClusterPlan(
        checkpoint=write_checkpoint(tmp_path),
        num_decode=1,
        num_prefill=0,
        num_blocks=128,
        drain_s=5.0,
        worker={"engine": "echo"},
        commands={Part.DECODE: DEAF},
    )
    prompt = prompt_of(1, 40)
    async with LocalCluster(plan, supervision=NO_KILLING) as cluster:
        client = AsyncClient(cluster.address)

        async def serves() -> bool:
            return (await status(cluster))["decode-0"].serving

        async def serves_no_more() -> bool:
            return not await serves()

        assert await ask(client, prompt, 10) == expected(prompt, 10)
        idle_until = time.monotonic() + 2.5
        os.kill(cluster.children["decode-0"].pid, signal.SIGUSR1)
        while time.monotonic() < idle_until:  # no work waits: nothing was missed
            assert await serves()
            await asyncio.sleep(0.1)
        asking = asyncio.create_task(ask(client, prompt, 10))
        assert await until(serves_no_more, 20.0) > 1.0
        os.kill(cluster.children["decode-0"].pid, signal.SIGUSR2)
        assert await asking == expected(prompt, 10)
        await until(serves, 20.0)
        await client.close()
