"""Answers outlive their router: killed under load, frozen, or killed with its client."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import yaml

from cluster.errors import PenstockError
from deploy.launcher import LocalCluster
from deploy.plan import ClusterPlan
from penstock.aio import AsyncClient
from tests.processes.echo_cluster import NO_KILLING, is_all_free, running, until
from tests.redis_server import redis_server
from tests.router.checkpoint import write_checkpoint
from tests.router.event_stream import EventStream, told
from tests.router.router_process import router_process
from tests.workers.answers import expected, prompt_of

NUM_STREAMS, NUM_TOKENS, NUM_PROMPTS = 24, 160, 2
OPTIONS = {"temperature": 0.0, "max_tokens": NUM_TOKENS, "ignore_eos": True}
PROMPTS = [prompt_of(number, 40) for number in range(NUM_PROMPTS)]
# Reads one token, and then nothing: what it asked for is more than fits between it and its worker.
CLIENT = """
import sys, time
from penstock import Client
stream = Client(sys.argv[1]).generate(
    token_ids=list(range(40)), n=16, logprobs=5, max_tokens=400, ignore_eos=True
)
next(stream)
print("begun", flush=True)
time.sleep(600)
"""

# One answer to a prompt; calls what it is given with each token that has come.
Ask = Callable[[list[int], Callable[[], None]], Awaitable[list[int]]]


def by_sdk(client: AsyncClient) -> Ask:
    async def ask(prompt: list[int], came: Callable[[], None]) -> list[int]:
        received: list[int] = []
        async with client.generate(token_ids=prompt, **OPTIONS) as stream:
            async for chunk in stream:
                received += chunk.token_ids
                came()
        return received

    return ask


def by_http(addresses: Callable[[], list[str]]) -> Ask:
    """Comes back by the id of the last event, wherever somebody listens."""

    async def ask(prompt: list[int], came: Callable[[], None]) -> list[int]:
        body = {"prompt": prompt, "stream": True, "return_token_ids": True, **OPTIONS}
        stream = EventStream(addresses()[0], "POST", "/v1/completions", body)
        await _read(stream, came)
        events, request_id = stream.events, stream.headers["x-request-id"]
        path, key = f"/v1/streams/{request_id}", stream.headers["x-resume-key"]
        async with asyncio.timeout(60):
            while not events or events[-1][1] != "[DONE]":
                for address in addresses():
                    last = {"last_event_id": events[-1][0]} if events else {}  # only a head came
                    kept = {"x_resume_key": key, **last}
                    stream = EventStream(address, "GET", path, **kept)
                    await _read(stream, came)
                    if stream.came and stream.status == 200:
                        events += stream.events
                    assert not stream.came or stream.status in (200, 503), stream.came
                await asyncio.sleep(0.05)
        return told(events)[0]

    return ask


async def _read(stream: EventStream, came: Callable[[], None]) -> None:
    try:
        while not stream.is_over:
            await stream.read_some()
            came()
    except OSError:
        pass  # nobody listens


async def struck(ask: Ask, strike: Callable[[], None]) -> None:
    """All streams are in the middle when it happens."""
    begun: set[int] = set()
    is_struck = False

    async def one(number: int) -> None:
        num_came = 0

        def came() -> None:
            nonlocal num_came, is_struck
            num_came += 1
            if num_came == 1:
                begun.add(number)
            if len(begun) == NUM_STREAMS and not is_struck:
                is_struck = True
                strike()

        prompt = PROMPTS[number % NUM_PROMPTS]
        assert await ask(prompt, came) == expected_of[number % NUM_PROMPTS]

    expected_of = [expected(prompt, NUM_TOKENS) for prompt in PROMPTS]
    async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
        for number in range(NUM_STREAMS):
            tasks.create_task(one(number))
    assert is_struck


@asynccontextmanager
async def two_routers(folder: Path) -> AsyncIterator[tuple[LocalCluster, list[str], list[str]]]:
    """Over one Redis: a cluster, and where both listen, for gRPC and for HTTP."""
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(redis_server())
        plan = ClusterPlan(
            checkpoint=write_checkpoint(folder),
            model="echo",
            num_decode=2,
            num_prefill=1,
            num_blocks=2048,
            router={"store": redis.url},
            worker={"engine": "echo", "router": redis.url},
        )
        made = LocalCluster(plan, supervision=NO_KILLING)
        cluster = await stack.enter_async_context(made)
        config = folder / "second.yaml"
        settings = dict(cluster.plan.router_plan(cluster.secrets_file, 0).config)
        del settings["policy_state"]
        config.write_text(yaml.safe_dump({**settings, "http": "127.0.0.1:0"}))
        second = await stack.enter_async_context(router_process(config))
        yield cluster, [cluster.address, second.address], [cluster.http, second.ready["http"]]


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_event_streams_outlive_a_router_that_is_killed_and_started_again(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, num_decode=2, num_blocks=2048) as (cluster, _):
        http, pid = cluster.http, cluster.children["router"].pid
        await struck(by_http(lambda: [http]), lambda: os.kill(pid, signal.SIGKILL))
        assert cluster.num_restarts == 1
        await until(lambda: _is_answered_free(cluster), 20.0)


@pytest.mark.prove
@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["sdk", "http"])
async def test_streams_go_on_at_the_other_router(tmp_path: Path, kind: str) -> None:
    async with two_routers(tmp_path) as (cluster, by_grpc, http):
        pid = cluster.children["router"].pid
        async with AsyncClient("ipv4:" + ",".join(by_grpc)) as client:
            ask = by_sdk(client) if kind == "sdk" else by_http(lambda: http)
            await struck(ask, lambda: os.kill(pid, signal.SIGKILL))
        await until(lambda: _is_answered_free(cluster), 30.0)


@pytest.mark.prove
@pytest.mark.alone
@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["sdk", "http"])
async def test_a_router_that_was_frozen_for_ten_seconds_loses_nothing(
    tmp_path: Path, kind: str
) -> None:
    async with running(tmp_path, num_decode=2, num_blocks=2048) as (cluster, client):
        pid, loop = cluster.children["router"].pid, asyncio.get_running_loop()

        def freeze() -> None:
            os.kill(pid, signal.SIGSTOP)
            loop.call_later(10.0, os.kill, pid, signal.SIGCONT)

        http = cluster.http
        ask = by_sdk(client) if kind == "sdk" else by_http(lambda: [http])
        await struck(ask, freeze)
        assert cluster.num_restarts == 0


@pytest.mark.prove
@pytest.mark.timeout(180)
async def test_a_router_and_its_client_are_killed_and_all_is_freed_at_the_end_of_the_grace(
    tmp_path: Path,
) -> None:
    grace = {"detached_s": 2.0}
    async with running(tmp_path, num_prefill=0, disaggregate="never", decode=grace) as (cluster, _):
        client = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", CLIENT, cluster.address), stdout=asyncio.subprocess.PIPE
        )
        assert client.stdout is not None
        assert await client.stdout.readline() == b"begun\n"
        await until(lambda: _is_held(cluster), 10.0)
        os.kill(cluster.children["router"].pid, signal.SIGKILL)
        client.kill()
        await client.wait()
        await until(lambda: _is_answered_free(cluster), 15.0)


async def _is_answered_free(cluster: LocalCluster) -> bool:
    try:
        return await is_all_free(cluster)
    except PenstockError:  # the router is not back
        return False


async def _is_held(cluster: LocalCluster) -> bool:
    return not await is_all_free(cluster)
