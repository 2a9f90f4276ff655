"""Serving means that steps end: a wedged engine is told apart from a busy one."""

import asyncio
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.workers.answers import expected, greedy, prompt_of
from tests.workers.local_cluster import LocalCluster, Running

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def watch_health(running: Running, states: list[int]) -> None:
    async with grpc.aio.insecure_channel(running.address) as channel:
        request = health_pb2.HealthCheckRequest(service="penstock.v1.Decode")
        async for response in health_pb2_grpc.HealthStub(channel).Watch(request):
            states.append(response.status)  # noqa: PERF401 - seen while it grows


@pytest.mark.slow
async def test_a_wedged_engine_says_so_while_its_event_loop_lives(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with LocalCluster(checkpoint, tmp_path, decode=[{}, {}], prefill=[]) as cluster:
        for running in cluster.decode:
            running.gate.close()
        task = asyncio.create_task(cluster.generate(greedy(prompt_of(1, 40), 5)))
        await cluster.until(lambda: any(r.gate.reached.is_set() for r in cluster.decode))
        wedged = next(r for r in cluster.decode if r.gate.reached.is_set())
        other = next(r for r in cluster.decode if r is not wedged)
        other.gate.open()
        states: list[int] = []
        watching = asyncio.create_task(watch_health(wedged, states))
        await cluster.until(lambda: NOT_SERVING in states)
        await cluster.until(
            lambda: (
                [
                    view.worker
                    for view in cluster.router.pool.snapshot(cluster.router.clock()).decode
                ]
                == [other.name]
            )
        )
        answer = await cluster.generate(greedy(prompt_of(1, 40), 5))
        assert answer.messages[0].accepted.decode_worker == other.name
        wedged.gate.open()
        assert (await task).token_ids == expected(prompt_of(1, 40), 5)
        await cluster.until(lambda: states[-1] == SERVING)
        watching.cancel()


@pytest.mark.alone
@pytest.mark.slow
async def test_a_busy_engine_goes_on_serving(checkpoint: Path, tmp_path: Path) -> None:
    async with LocalCluster(checkpoint, tmp_path, prefill=[]) as cluster:
        running = cluster.decode[0]
        states: list[int] = []
        watching = asyncio.create_task(watch_health(running, states))
        calls = [cluster.generate(greedy(prompt_of(i, 60), 60), timeout_s=60) for i in range(40)]
        async with asyncio.timeout(60):
            await asyncio.gather(*calls)
        watching.cancel()
        assert states == [SERVING]
