"""Pairs of real processes: ready before the first request, and fetches under signals."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from cluster.channel import open_channel
from cluster.errors import PenstockError
from cluster.secrets import load_secrets
from deploy.launcher import LocalCluster
from deploy.plan import ClusterPlan
from penstock.aio import AsyncClient
from penstock.v1 import worker_pb2
from tests.processes.echo_cluster import NO_KILLING, status, until
from tests.router.checkpoint import write_checkpoint
from tests.workers.answers import expected, prompt_of
from tests.workers.decoding import continuation

pytestmark = pytest.mark.slow
PROVE = pytest.mark.prove


@asynccontextmanager
async def running(
    folder: Path, *, transport: str = "shared_memory", num_decode: int = 1, num_prefill: int = 1
) -> AsyncIterator[LocalCluster]:
    plan = ClusterPlan(
        checkpoint=write_checkpoint(folder),
        num_decode=num_decode,
        num_prefill=num_prefill,
        num_blocks=512,
        transports=(transport,),
        require_transport=transport,
        drain_s=5.0,
        router={"disaggregate": "always"},
        worker={"engine": "echo", "lease_s": 1.0, "fetch_s": 1.0},
    )
    async with LocalCluster(plan, supervision=NO_KILLING) as cluster:
        yield cluster


async def decode(
    cluster: LocalCluster, by: worker_pb2.WorkerStatus, request: worker_pb2.DecodeRequest
) -> list[Any]:
    token = load_secrets(cluster.secrets_file).cluster_token
    async with open_channel(by.member.worker.address, token) as channel:
        call = channel.stream("penstock.v1.Decode", "Generate", request, timeout_s=30)
        async with call:
            return [message async for message in call]


def ids(messages: list[Any]) -> list[int]:
    return [i for message in messages for delta in message.deltas for i in delta.token_ids]


def fetching(prompt: list[int], source: worker_pb2.WorkerStatus) -> worker_pb2.DecodeRequest:
    request = continuation([], prompt=prompt, max_tokens=8)
    request.source.CopyFrom(source.member.worker)
    return request


async def until_known(
    cluster: LocalCluster, receiver: worker_pb2.WorkerStatus, source: worker_pb2.WorkerStatus
) -> None:
    """Returns when a heartbeat has told the receiver of the source: it fetches from it."""
    numbers = count(1000)

    async def fetches() -> bool:
        prompt = prompt_of(next(numbers), 40)
        await decode(cluster, source, continuation([], prompt=prompt, max_tokens=1))
        messages = await decode(cluster, receiver, fetching(prompt, source))
        assert ids(messages) == expected(prompt, 8)
        return bool(messages[0].accepted.cached_tokens)

    await until(fetches, 3.0)


async def all_free(cluster: LocalCluster) -> bool:
    loads = [worker.load for worker in (await status(cluster)).values() if worker.serving]
    return all(
        load.num_free_blocks == load.num_blocks > 0 and not load.num_quarantined_blocks
        for load in loads
    )


@pytest.mark.alone
@pytest.mark.parametrize("transport", ["shared_memory", pytest.param("tcp", marks=PROVE)])
async def test_the_first_request_is_like_the_second(tmp_path: Path, transport: str) -> None:
    async with running(tmp_path, transport=transport) as cluster:

        async def is_probed() -> bool:
            pairs = (await status(cluster))["decode-0"].load.pairs
            tried = [(pair.peer, pair.transport) for pair in pairs if pair.transfers >= 2]
            return tried == [("prefill-0", transport)]  # once, and once more to be timed

        await until(is_probed, 5.0)  # the next report tells
        async with AsyncClient(cluster.address) as client:
            timelines = []
            for number in range(3):
                options = {"temperature": 0.0, "max_tokens": 4, "ignore_eos": True}
                prompt = prompt_of(number, 60)
                answer = await client.generate(token_ids=prompt, timeout=30, **options).result()
                assert list(answer.token_ids) == expected(prompt, 4)
                timelines.append(answer.timeline)
        print([f"{t.transfer_visible_seconds * 1e3:.2f} ms" for t in timelines])
        assert timelines[0].recomputes == 0
        assert timelines[0].transfer_visible_seconds < 0.2


@pytest.mark.parametrize("transport", ["tcp", pytest.param("shared_memory", marks=PROVE)])
async def test_a_prefix_is_fetched_between_processes(tmp_path: Path, transport: str) -> None:
    async with running(tmp_path, transport=transport, num_decode=2) as cluster:
        workers = await status(cluster)
        source, receiver = workers["decode-0"], workers["decode-1"]
        await until_known(cluster, receiver, source)
        prompt = prompt_of(3, 200)
        await decode(cluster, source, continuation([], prompt=prompt, max_tokens=8))
        messages = await decode(cluster, receiver, fetching(prompt, source))
        assert ids(messages) == expected(prompt, 8)
        assert messages[0].accepted.cached_tokens == 192
        await until(lambda: all_free(cluster), 5.0)


@pytest.mark.parametrize("blow", [signal.SIGSTOP, pytest.param(signal.SIGKILL, marks=PROVE)])
async def test_a_source_that_falls_costs_a_second_and_no_answer(
    tmp_path: Path, blow: signal.Signals
) -> None:
    async with running(tmp_path, num_decode=2, num_prefill=0) as cluster:
        workers = await status(cluster)
        source, receiver = workers["decode-0"], workers["decode-1"]
        await until_known(cluster, receiver, source)
        prompts = [prompt_of(number, 200) for number in range(6)]
        for prompt in prompts:
            await decode(cluster, source, continuation([], prompt=prompt, max_tokens=8))
        tasks = [
            asyncio.create_task(decode(cluster, receiver, fetching(prompt, source)))
            for prompt in prompts
        ]
        pid = cluster.children["decode-0"].pid
        os.kill(pid, blow)
        started = time.monotonic()
        answers = await asyncio.gather(*tasks)
        assert [ids(answer) for answer in answers] == [expected(p, 8) for p in prompts]
        assert time.monotonic() - started < 5.0
        if blow is signal.SIGSTOP:
            os.kill(pid, signal.SIGCONT)
        assert await until(lambda: all_free(cluster), 10.0) < 5.0


async def test_a_restarted_worker_is_good_for_its_first_request(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        receiver = (await status(cluster))["decode-0"]
        old = cluster.children["prefill-0"].pid
        os.kill(old, signal.SIGKILL)

        async def is_back() -> bool:
            worker = (await status(cluster)).get("prefill-0")
            return cluster.children["prefill-0"].pid != old and worker is not None

        await until(is_back, 20.0)
        joined = time.monotonic()
        prompt = prompt_of(5, 60)
        while time.monotonic() - joined < 2.0:
            prompt = [*prompt, 1]
            request = continuation([], prompt=prompt, max_tokens=8)
            request.prefill.CopyFrom((await status(cluster))["prefill-0"].member.worker)
            try:
                messages = await decode(cluster, receiver, request)
            except PenstockError:
                continue
            assert ids(messages) == expected(prompt, 8)
            if messages[-1].finished.timeline.recomputes == 0:
                break
        else:
            pytest.fail("no hand-over succeeded within two seconds")
