"""A router is killed under load and started again: nobody notices but a pause."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.launcher import LocalCluster
from penstock import AsyncClient, Client, errors
from tests.processes.echo_cluster import running
from tests.workers.answers import expected, prompt_of

NUM_REQUESTS, AT_A_TIME, NUM_TOKENS = 300, 24, 48
NUM_PROMPTS = 10
OPTIONS = {"temperature": 0.0, "max_tokens": NUM_TOKENS, "ignore_eos": True}

# The tokens of a request; what was received is there also when it raises.
Ask = Callable[[list[int], list[int]], Awaitable[None]]


@contextmanager
def burnt_cores() -> Iterator[None]:
    """Every core has something else to do, for three minutes at most."""
    burn = "import time\nend = time.monotonic() + 180\nwhile time.monotonic() < end: pass"
    burning = [subprocess.Popen([sys.executable, "-c", burn]) for _ in range(os.cpu_count() or 2)]
    try:
        yield
    finally:
        for process in burning:
            process.kill()
        for process in burning:
            process.wait()


def by_async(client: AsyncClient) -> Ask:
    async def ask(prompt: list[int], received: list[int]) -> None:
        async with client.generate(token_ids=prompt, **OPTIONS) as stream:
            async for chunk in stream:
                received.extend(chunk.token_ids)

    return ask


def by_sync(client: Client) -> Ask:
    def read(prompt: list[int], received: list[int]) -> None:
        with client.generate(token_ids=prompt, **OPTIONS) as stream:
            for chunk in stream:
                received.extend(chunk.token_ids)

    async def ask(prompt: list[int], received: list[int]) -> None:
        await asyncio.to_thread(read, prompt, received)

    return ask


async def struck_under_load(cluster: LocalCluster, ask: Ask, blow: signal.Signals) -> int:
    """How many streams were interrupted."""
    prompts = [prompt_of(number, 40 + number) for number in range(NUM_PROMPTS)]
    answers = [expected(prompt, NUM_TOKENS) for prompt in prompts]
    waiting = iter(range(NUM_REQUESTS))
    ended: list[bool] = []

    async def reader() -> None:
        for number in waiting:
            received: list[int] = []
            counted = NUM_TOKENS
            try:
                await ask(prompts[number % NUM_PROMPTS], received)
            except errors.StreamInterruptedError as error:
                counted = error.tokens_emitted
            assert counted == len(received) > 0
            assert received == answers[number % NUM_PROMPTS][:counted]
            ended.append(counted == NUM_TOKENS)
            if len(ended) == NUM_REQUESTS // 3:
                os.kill(cluster.children["router"].pid, blow)

    began = time.monotonic()
    async with asyncio.timeout(240), asyncio.TaskGroup() as readers:
        for _ in range(AT_A_TIME):
            readers.create_task(reader())
    print(f"{ended.count(False)} interrupted, {time.monotonic() - began:.1f} s")
    assert len(ended) == NUM_REQUESTS
    assert cluster.num_restarts == 1
    return ended.count(False)


async def interrupted(folder: Path, kind: str, blow: signal.Signals) -> int:
    async with running(folder, num_decode=2) as (cluster, client):
        if kind == "async":
            return await struck_under_load(cluster, by_async(client), blow)
        with Client(cluster.address) as blocking:
            return await struck_under_load(cluster, by_sync(blocking), blow)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sync", pytest.param("async", marks=pytest.mark.prove)])
async def test_nobody_notices_that_the_router_was_killed(tmp_path: Path, kind: str) -> None:
    assert await interrupted(tmp_path, kind, signal.SIGKILL) == 0


@pytest.mark.prove
@pytest.mark.slow
async def test_nobody_notices_that_the_router_was_drained(tmp_path: Path) -> None:
    assert await interrupted(tmp_path, "async", signal.SIGTERM) == 0


@pytest.mark.prove
@pytest.mark.alone
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_the_same_beside_burnt_cores(tmp_path: Path, kind: str) -> None:
    with burnt_cores():
        assert await interrupted(tmp_path, kind, signal.SIGKILL) == 0
