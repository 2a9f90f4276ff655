"""A router that drains and has a door of its own for calls of the cluster closes the other one at
once: clients with a second address do not wait for its refusal."""

import asyncio
import contextlib
import signal
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from penstock import AsyncClient
from penstock.v1 import inference_pb2 as pb
from penstock.v1 import inference_pb2_grpc, worker_pb2
from tests.doors import ask_cluster, told_to_leave
from tests.redis_server import redis_server
from tests.router.cluster_of_fakes import Cluster, failure
from tests.router.fake_worker import TOKEN, FakeWorker, Faults
from tests.router.router_process import RouterProcess, fingerprint, router_process, write_config

PROMPT = list(range(1, 9))
LOOPBACK = "127.0.0.1:0"


async def status(address: str) -> worker_pb2.StatusResponse:
    async with grpc.aio.insecure_channel(address) as channel:
        found: worker_pb2.StatusResponse = await ask_cluster(
            channel, "Status", worker_pb2.StatusRequest(), TOKEN
        )
    return found


async def test_clients_go_to_the_next_router_at_once_and_streams_end_as_they_would(
    checkpoint: Path, tmp_path: Path
) -> None:
    """A plain client: nothing of ours repeats a call."""
    async with (
        redis_server() as redis,
        Cluster(checkpoint, tmp_path, store=redis.url, internal=LOOPBACK) as closing,
        Cluster(checkpoint, tmp_path, store=redis.url, internal=LOOPBACK) as other,
        closing.worker("d0", faults=Faults(stall_after=1)) as worker,
    ):
        for router in (closing, other):
            await router.serving(worker)
        target = f"ipv4:{closing.address},{other.address}"
        running = asyncio.create_task(closing.generate(token_ids=pb.TokenIds(ids=PROMPT)))
        async with grpc.aio.insecure_channel(target) as channel:
            stub: Any = inference_pb2_grpc.InferenceStub(channel)
            await stub.GetModel(pb.GetModelRequest())
            await closing.until(lambda: worker.num_sent == 1)  # the other tokens wait
            worker.faults = Faults()
            closing.drain.set()
            await told_to_leave(channel)
            for _ in range(10):
                request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=PROMPT))
                messages = [each async for each in stub.Generate(request)]
                assert messages[-1].HasField("finished")
        told = await status(closing.router.internal_address)
        assert told.requests_in_flight == 1
        asked = worker_pb2.DrainRequest(worker_id="d0", force=True)
        async with grpc.aio.insecure_channel(closing.router.internal_address) as channel:
            await ask_cluster(channel, "Drain", asked, TOKEN)
        worker.resume()
        assert (await running).token_ids == PROMPT


async def test_with_one_door_for_all_it_stays_open_and_refuses(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Its workers and operators come in there, too."""
    async with (
        Cluster(checkpoint, tmp_path) as cluster,
        cluster.worker("d0", faults=Faults(stall_after=1)) as worker,
    ):
        await cluster.serving(worker)
        running = asyncio.create_task(cluster.generate(token_ids=pb.TokenIds(ids=PROMPT)))
        await worker.served.wait()
        cluster.drain.set()
        await cluster.until(lambda: cluster.router.admission.is_draining)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await cluster.generate(token_ids=pb.TokenIds(ids=PROMPT))
        assert failure(refused.value).reason == "DRAINING"
        assert (await status(cluster.address)).requests_in_flight == 1
        worker.resume()
        assert (await running).token_ids == PROMPT


@pytest.mark.alone
@pytest.mark.slow
async def test_nobody_waits_for_a_router_that_drains(checkpoint: Path, tmp_path: Path) -> None:
    """Of two processes under load, with clients that know both; one answer keeps it draining."""
    shared = fingerprint(checkpoint)
    async with contextlib.AsyncExitStack() as stack:
        redis = await stack.enter_async_context(redis_server())
        made = write_config(
            tmp_path, checkpoint, store=redis.url, address=LOOPBACK, internal=LOOPBACK
        )
        routers = [await stack.enter_async_context(router_process(made)) for _ in range(2)]
        worker = FakeWorker("d0", routers[0].address, shared, "echo")
        await stack.enter_async_context(worker)
        target = f"ipv4:{','.join(router.address for router in routers)}"
        client = await stack.enter_async_context(AsyncClient(target))
        for router in routers:  # each knows the worker
            own = await stack.enter_async_context(AsyncClient(router.address))
            await own.generate(token_ids=PROMPT, timeout=30).result()
        num_before = worker.num_sent
        worker.faults = Faults(stall_after=1)
        held = asyncio.create_task(client.generate(token_ids=PROMPT).result())
        async with asyncio.timeout(10):
            while worker.num_sent == num_before:  # noqa: ASYNC110 - seen from outside
                await asyncio.sleep(0.005)
        worker.faults = Faults()
        seconds = await _asked_meanwhile(client, routers[0])
        print(f"the slowest of {len(seconds)} took {max(seconds):.3f} s")
        assert max(seconds) < 0.5
        worker.resume()
        assert list((await held).token_ids) == PROMPT
        async with asyncio.timeout(10):
            assert await routers[0].process.wait() == 0


async def _asked_meanwhile(client: AsyncClient, router: RouterProcess) -> list[float]:
    """What each of many requests took, while a router is told to drain."""
    clock, seconds = asyncio.get_running_loop().time, []

    async def ask(number: int) -> None:
        for _ in range(40):
            began = clock()
            answer = await client.generate(token_ids=PROMPT, timeout=30).result()
            assert list(answer.token_ids) == PROMPT
            seconds.append(clock() - began)
            if len(seconds) == 80:
                router.process.send_signal(signal.SIGTERM)

    await asyncio.gather(*map(ask, range(8)))
    return seconds
