"""Work whose size one client chooses never stands in the way of everybody's small requests: a
router process under load, and short requests beside it.
"""

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc.aio
import pytest

from bench.router_processes import MODEL, RelayedLoad, process, router_config, run_worker, serving
from bench.router_requests import long_checkpoint
from penstock.v1 import inference_pb2 as pb
from penstock.v1 import inference_pb2_grpc
from tests.router.large_load import LOADS
from tests.router.router_process import ROOT, RouterProcess, router_process, write_config

SECONDS = 6.0
ONE_TOKEN = RelayedLoad(num_messages=1, concurrency=1, short=1, long=1, tokens_per_message=1)
MAX_MEDIAN_S, MAX_WORST_S = 0.1, 0.5  # above alone
SMALL = (
    pb.GenerateRequest(token_ids={"ids": list(range(300, 340))}, stop={"max_tokens": 1}),
    pb.GenerateRequest(text="What does a router cost?", stop={"max_tokens": 1}),
)


class Waits(NamedTuple):
    """Seconds that small requests took."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        return (
            f"{len(self.seconds)} requests, median {1e3 * self.median:.1f} ms, "
            f"worst {1e3 * max(self.seconds):.1f}"
        )


@asynccontextmanager
async def roomy_router(directory: Path) -> AsyncIterator[tuple[RouterProcess, Any]]:
    """With a context of 131,072 tokens, a worker in a process of its own, and a client's stub."""
    checkpoint = long_checkpoint(directory)
    config = write_config(directory, checkpoint, model=MODEL)
    worker_config = router_config(checkpoint, directory)  # the same secrets for both
    async with router_process(config) as router:
        with process(run_worker, ONE_TOKEN, worker_config) as (_, pipe):
            await asyncio.to_thread(pipe.recv)
            pipe.send(router.address)
            await serving(router.address)
            async with grpc.aio.insecure_channel(router.address) as channel:
                yield router, inference_pb2_grpc.InferenceStub(channel)


async def asked(stub: Any, num: int) -> Waits:
    """Small requests one after another, by ids and by text in turn."""
    seconds = []
    for number in range(num):
        begin = time.monotonic()
        messages = [m async for m in stub.Generate(SMALL[number % 2], timeout=60)]
        seconds.append(time.monotonic() - begin)
        assert messages[-1].HasField("finished")
        await asyncio.sleep(0.01)
    return Waits(seconds)


async def asked_beside(stub: Any, load: asyncio.subprocess.Process) -> Waits:
    """Small requests until the load is over, fifty at least."""
    seconds: list[float] = []
    over = asyncio.create_task(load.wait())
    while len(seconds) < 50 or not over.done():
        seconds += (await asked(stub, 10)).seconds
    return Waits(seconds)


async def loaded(address: str, name: str, seconds: float) -> asyncio.subprocess.Process:
    load = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.router.large_load", address, name, str(seconds)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert load.stdout is not None
    assert await load.stdout.readline() == b"begun\n"
    return load


@asynccontextmanager
async def burnt(seconds: float) -> AsyncIterator[None]:
    """Every processor is busy, for so long at most."""
    code = f"import time\nend = time.monotonic() + {seconds}\nwhile time.monotonic() < end: pass"
    spawn = asyncio.create_subprocess_exec
    burning = [await spawn(sys.executable, "-c", code) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process_ in burning:
            if process_.returncode is None:
                process_.kill()
            await process_.wait()


async def beside_load(name: str, directory: Path) -> tuple[Waits, Waits]:
    """How long small requests take alone, and beside a load: none of them fails."""
    async with roomy_router(directory) as (router, stub):
        await asked(stub, 10)
        alone = await asked(stub, 50)
        load = await loaded(router.address, name, SECONDS)
        beside = await asked_beside(stub, load)
        assert load.stdout is not None
        ended = json.loads(await load.stdout.read())
    print(f"{name}: alone {alone}; beside {beside}; the load: {ended}")
    assert ended.keys() <= {"OK", "CANCELLED", "INVALID_ARGUMENT", "UNAVAILABLE"}
    return alone, beside


@pytest.mark.prove
@pytest.mark.alone
@pytest.mark.parametrize("name", LOADS)
async def test_small_requests_are_as_quick_beside_large_work(name: str, tmp_path: Path) -> None:
    alone, beside = await beside_load(name, tmp_path)
    assert beside.median - alone.median <= MAX_MEDIAN_S
    assert max(beside.seconds) - max(alone.seconds) <= MAX_WORST_S


@pytest.mark.prove
@pytest.mark.alone
@pytest.mark.parametrize("name", LOADS)
async def test_small_requests_are_answered_beside_large_work_on_a_busy_machine(
    name: str, tmp_path: Path
) -> None:
    async with burnt(60.0):
        _, beside = await beside_load(name, tmp_path)
    assert len(beside.seconds) >= 50
