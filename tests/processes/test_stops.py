"""SIGSTOP and SIGCONT: whoever stood still, and whoever watched it, no stream is lost and nothing
is refused for silence.

A process that stands still is late for everybody, and everybody is late for it.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import psutil
import pytest
import yaml

from deploy.launcher import LocalCluster, Supervision
from deploy.plan import ClusterPlan
from tests.burnt_cores import burnt_cores
from tests.processes.streams import Streams
from tests.redis_server import redis_server
from tests.router.checkpoint import write_checkpoint
from tests.router.router_process import router_process

SUPERVISION = Supervision(first_backoff_s=0.1)
WORKERS = ["decode-0", "decode-1", "prefill-0", "prefill-1"]
ONCE = ["decode-0", "all"]
Pids = Callable[[], list[int]]  # as of now: some may have been started again


@contextmanager
def stopped(pids: Sequence[int]) -> Iterator[None]:
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # killed for it, and replaced
                os.kill(pid, signal.SIGCONT)


def plan(folder: Path, *, store: str | None = None) -> ClusterPlan:
    return ClusterPlan(
        checkpoint=write_checkpoint(folder),
        model="echo",
        num_decode=2,
        num_prefill=2,
        num_blocks=256,
        drain_s=5.0,
        router={"disaggregate": "always", **({"store": store} if store else {})},
        worker={"engine": "echo", **({"router": store} if store else {})},
    )


@asynccontextmanager
async def one_router(folder: Path) -> AsyncIterator[tuple[Streams, dict[str, Pids]]]:
    async with LocalCluster(plan(folder), supervision=SUPERVISION) as cluster:
        streams = Streams([cluster.address])
        async with streams.running():
            yield streams, stoppable(cluster)


@asynccontextmanager
async def two_routers(folder: Path) -> AsyncIterator[tuple[Streams, dict[str, Pids]]]:
    """Workers register in Redis."""
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(redis_server())
        made = LocalCluster(plan(folder, store=redis.url), supervision=SUPERVISION)
        cluster = await stack.enter_async_context(made)
        config = folder / "second.yaml"
        settings = dict(cluster.plan.router_plan(cluster.secrets_file, 0).config)
        del settings["policy_state"]
        config.write_text(yaml.safe_dump(settings))
        second = await stack.enter_async_context(router_process(config))
        streams = Streams([cluster.address, second.address])
        await stack.enter_async_context(streams.running())
        own = stoppable(cluster)
        yield (
            streams,
            {
                **own,
                "redis": lambda: [redis.pid],
                "all": lambda: [*own["all"](), second.process.pid, redis.pid],
            },
        )


def stoppable(cluster: LocalCluster) -> dict[str, Pids]:
    def pids(*names: str) -> list[int]:
        return [cluster.children[name].pid for name in names]

    each: dict[str, Pids] = {name: (lambda name=name: pids(name)) for name in ["router", *WORKERS]}
    return {**each, "all": lambda: pids("router", *WORKERS)}


async def all_live(pids: Pids) -> None:
    """A worker that was stopped for too long is being started again."""
    async with asyncio.timeout(30):
        while not all(psutil.pid_exists(pid) for pid in pids()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # nobody tells of it


async def stop(streams: Streams, pids: Pids, seconds: float) -> None:
    await all_live(pids)
    await streams.in_the_middle()
    with stopped(pids()):
        await asyncio.sleep(seconds)
    await streams.each_again()
    assert streams.lost == []
    assert streams.wrong == []


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_whoever_is_stopped_no_stream_is_lost(tmp_path: Path) -> None:
    async with one_router(tmp_path) as (streams, parties):
        for who in ONCE:
            await stop(streams, parties[who], 2.0)


@pytest.mark.prove
@pytest.mark.timeout(180)
async def test_a_store_that_is_stopped_costs_no_stream(tmp_path: Path) -> None:
    async with two_routers(tmp_path) as (streams, parties):
        await stop(streams, parties["redis"], 4.0)  # all records have lapsed


@pytest.mark.prove
@pytest.mark.alone
@pytest.mark.timeout(900)
@pytest.mark.parametrize("is_busy", [False, True], ids=["quiet", "busy"])
@pytest.mark.parametrize("who", ["router", *WORKERS, "all"])
async def test_a_stop_of_any_length(tmp_path: Path, who: str, is_busy: bool) -> None:
    async with one_router(tmp_path) as (streams, parties):
        with burnt_cores(at_most_s=600) if is_busy else contextlib.nullcontext():
            for seconds in (1, 2, 4, 8):
                await stop(streams, parties[who], seconds)


@pytest.mark.prove
@pytest.mark.alone
@pytest.mark.timeout(900)
@pytest.mark.parametrize("is_busy", [False, True], ids=["quiet", "busy"])
@pytest.mark.parametrize("who", ["redis", "router", "all"])
async def test_a_stop_of_any_length_with_two_routers(
    tmp_path: Path, who: str, is_busy: bool
) -> None:
    async with two_routers(tmp_path) as (streams, parties):
        with burnt_cores(at_most_s=600) if is_busy else contextlib.nullcontext():
            for seconds in (1, 2, 4, 8):
                await stop(streams, parties[who], seconds)
