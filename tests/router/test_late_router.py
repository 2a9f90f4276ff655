"""A router that was stopped, or starved, blames nobody for the time in which it heard nobody."""

import asyncio
import os
import signal
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from cluster.types import Incarnation, LoadReport, Role, WorkerId
from penstock.v1 import inference_pb2 as pb
from penstock.v1 import inference_pb2_grpc
from router.pool import Pool
from tests.router.cluster_of_fakes import Answer, Cluster
from tests.router.fake_worker import FakeWorker, Faults
from tests.router.pool_samples import member
from tests.router.router_process import fingerprint, router_process, write_config

D0, LIFE = WorkerId("d0"), Incarnation("1")


def test_silence_is_counted_only_while_we_watched() -> None:
    lag = [0.0]
    pool = Pool(lag_s=lambda: lag[0])
    pool.join(member("d0"))
    pool.report(D0, LIFE, LoadReport(), 10.0)
    lag[0] = 7.5
    assert pool.refusals(18.0) == []
    assert pool.reporting(18.0) == {D0}
    [silent] = pool.refusals(18.6)
    assert silent.reason == "no report for 8.6 s"
    pool.report(D0, LIFE, LoadReport(), 18.7)
    lag[0] = 7.6
    assert pool.refusals(19.7) == []
    assert len(pool.refusals(19.9)) == 1


def test_the_least_stale_serves_when_all_are_silent() -> None:
    pool = Pool()
    for name, at in (("d0", 10.0), ("d1", 11.0), ("d2", 12.0)):
        pool.join(member(name))
        pool.report(WorkerId(name), LIFE, LoadReport(), at)
    pool.report(WorkerId("d2"), LIFE, LoadReport(is_draining=True), 12.5)
    assert [load.worker for load in pool.snapshot(20.0).decode] == ["d1"]
    pool.report(D0, LIFE, LoadReport(), 20.1)
    assert [load.worker for load in pool.snapshot(20.2).decode] == ["d0"]
    pool.unreachable(D0, LIFE, 20.3)
    assert [load.worker for load in pool.snapshot(20.4).decode] == ["d1"]


def test_prefill_workers_that_are_silent_are_done_without() -> None:
    pool = Pool()
    for name, role in (("d0", Role.DECODE), ("p0", Role.PREFILL)):
        pool.join(member(name, role))
        pool.report(WorkerId(name), LIFE, LoadReport(), 10.0)
    assert [load.worker for load in pool.snapshot(20.0).loads] == ["d0"]


@pytest.mark.slow
@pytest.mark.prove
@pytest.mark.parametrize("stopped_s", [2.0, 8.0])
async def test_a_stopped_router_loses_no_stream_and_refuses_nobody(
    checkpoint: Path, tmp_path: Path, stopped_s: float
) -> None:
    async with (
        router_process(write_config(tmp_path, checkpoint)) as router,
        AsyncExitStack() as stack,
        grpc.aio.insecure_channel(router.address) as channel,
    ):
        stub: Any = inference_pb2_grpc.InferenceStub(channel)
        workers = [
            await stack.enter_async_context(
                FakeWorker(
                    f"d{i}",
                    router.address,
                    fingerprint(checkpoint),
                    "echo",
                    faults=Faults(stall_after=2),
                    report_interval_s=0.25,
                )
            )
            for i in range(4)
        ]
        streams = [await begun(stub) for _ in range(24)]
        os.kill(router.process.pid, signal.SIGSTOP)
        await asyncio.sleep(stopped_s)  # the time is what is tested
        os.kill(router.process.pid, signal.SIGCONT)
        new = [asyncio.create_task(finished(await begun(stub))) for _ in range(24)]
        async with asyncio.timeout(20):
            await asyncio.sleep(1.0)  # so long lapsed records would need to be judged
            for worker in workers:
                worker.resume()
            answers = await asyncio.gather(*map(finished, streams), *new)
    assert all(answer.is_complete for answer in answers)
    assert sum(len(worker.requests) for worker in workers) == 48, "nothing was moved"


async def begun(stub: Any) -> tuple[Any, Answer]:
    call = stub.Generate(pb.GenerateRequest(token_ids=pb.TokenIds(ids=range(1, 9))), timeout=60)
    answer = Answer()
    while len(answer.messages) < 2:
        message = await call.read()
        assert message is not grpc.aio.EOF
        answer.messages.append(message)
    return call, answer


async def finished(stream: tuple[Any, Answer]) -> Answer:
    call, answer = stream
    while (message := await call.read()) is not grpc.aio.EOF:
        answer.messages.append(message)
    return answer


@pytest.mark.alone
@pytest.mark.slow
async def test_a_worker_that_died_while_the_router_slept_is_dropped_soon(
    cluster: Cluster,
) -> None:
    async with cluster.worker("d0") as d0, cluster.worker("d1") as d1:
        await cluster.serving(d0, d1)
        await d0.die()
        time.sleep(3.5)  # noqa: ASYNC251 - this loop, and the router with it, hears nobody
        woken_at = time.monotonic()
        assert (await cluster.generate(text="x")).is_complete
        await cluster.until(lambda: cluster.router.pool.address(D0) is None)
        assert time.monotonic() - woken_at < 2.0
        assert cluster.router.pool.address(WorkerId("d1")) is not None


@pytest.mark.slow
async def test_a_stream_that_moves_is_not_cut_for_a_newer_record(cluster: Cluster) -> None:
    """As when two workers are given one id."""
    faults = Faults(stall_after=1)
    async with cluster.worker("d0", faults=faults) as older:
        await cluster.serving(older)
        call = cluster.inference.Generate(
            pb.GenerateRequest(token_ids=pb.TokenIds(ids=range(1, 40))), timeout=20
        )
        answer = Answer([await call.read()])
        async with cluster.worker("d0") as newer:
            await cluster.until(
                lambda: cluster.router.pool.address(D0).incarnation == newer.incarnation
            )
            older.resume()
            await finished((call, answer))
        assert answer.is_complete
        assert answer.token_ids == list(range(1, 40))
        assert newer.requests == []
