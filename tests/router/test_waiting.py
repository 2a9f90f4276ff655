"""Requests outlive the workers that they need: they wait for those that are expected back."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from cluster.channel import open_channel
from penstock.v1 import inference_pb2 as pb
from penstock.v1 import worker_pb2
from tests.router.cluster_of_fakes import Answer, Cluster, failure
from tests.router.fake_worker import TOKEN, FakeWorker, Faults

PROMPT = list(range(1, 9))


@pytest.fixture
async def patient(checkpoint: Path, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with Cluster(checkpoint, tmp_path, drain_s=5.0, return_s=30.0) as cluster:
        yield cluster
        assert cluster.router.waiting.is_empty
        cluster.router.waiting.check()


async def asked(cluster: Cluster, **fields: Any) -> Answer:
    return await cluster.generate(
        pb.GenerateRequest(token_ids=pb.TokenIds(ids=PROMPT), **fields), timeout_s=20
    )


async def waiting(cluster: Cluster, num: int) -> None:
    await cluster.until(lambda: cluster.router.waiting.figures().num_requests == num)


async def died(cluster: Cluster, *workers: FakeWorker) -> None:
    for worker in workers:
        await worker.die()
    now = cluster.router.clock
    names = {worker.name for worker in workers}
    await cluster.until(
        lambda: names.isdisjoint(load.worker for load in cluster.router.pool.snapshot(now()).decode)
    )


async def test_requests_wait_for_a_worker_that_died_and_its_next_life_serves_them(
    patient: Cluster,
) -> None:
    async with patient.worker("d0") as old:
        await patient.serving(old)
        await died(patient, old)
        asking = [asyncio.create_task(asked(patient)) for _ in range(5)]
        await waiting(patient, 5)
        assert patient.router.admission.num_in_flight == 5
        async with patient.worker("d0") as new:
            answers = await asyncio.gather(*asking)
            assert [answer.token_ids for answer in answers] == [PROMPT] * 5
            assert len(new.requests) == 5


async def test_an_answer_in_flight_waits_too_and_goes_on_where_it_was(patient: Cluster) -> None:
    async with patient.worker("d0", faults=Faults(fail_after=3)) as old:
        await patient.serving(old)
        asking = asyncio.create_task(asked(patient))
        await waiting(patient, 1)
        async with patient.worker("d0") as new:
            await asking
            [request] = new.requests
            assert list(request.emitted[0].token_ids) == PROMPT[:3]


async def test_a_request_that_two_workers_died_of_is_refused_by_name(patient: Cluster) -> None:
    """It may be what they die of: a third is not risked, and the client must not try again."""
    deadly = Faults(fail_after=1)
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(patient.worker(f"d{i}", faults=deadly))
            for i in range(3)
        ]
        await patient.serving(*workers)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asked(patient, request_id="the-deadly-one")
        failed = failure(caught.value)
        assert (failed.code, failed.reason) == (grpc.StatusCode.ABORTED, "WORKERS_DIED")
        assert "the-deadly-one" in failed.message
        assert failed.metadata["tokens_emitted"] == "2"
        assert sum(len(worker.requests) for worker in workers) == 2


async def test_a_worker_that_says_goodbye_is_not_waited_for(patient: Cluster) -> None:
    async with patient.worker("d0") as worker:
        await patient.serving(worker)
        worker.stop_heartbeat()
        await worker.heartbeat.leave()
        await died(patient, worker)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asked(patient)
        assert failure(caught.value).reason == "NO_WORKER"


async def test_one_that_crash_loops_is_not_waited_for_and_status_says_so(patient: Cluster) -> None:
    for _ in range(3):
        async with patient.worker("d0") as worker:
            await patient.serving(worker)
            await died(patient, worker)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asked(patient)
    assert failure(caught.value).reason == "NO_WORKER"
    [away] = (await status(patient)).away
    assert (away.worker_id, away.deaths, away.crash_looping) == ("d0", 3, True)
    assert not away.expected


async def status(cluster: Cluster) -> worker_pb2.StatusResponse:
    async with open_channel(cluster.address, TOKEN) as channel:
        return await channel.unary(
            "penstock.v1.Cluster", "Status", worker_pb2.StatusRequest(), timeout_s=5
        )


async def test_status_shows_who_waits_and_for_whom(patient: Cluster) -> None:
    async with patient.worker("d0") as old:
        await patient.serving(old)
        await died(patient, old)
        asking = [asyncio.create_task(asked(patient)) for _ in range(3)]
        await waiting(patient, 3)
        said = await status(patient)
        assert said.waiting.requests == 3
        assert said.waiting.bytes > 3 * len(PROMPT)
        assert said.waiting.longest_seconds > 0.0
        [away] = said.away
        assert (away.worker_id, away.role, away.expected) == ("d0", worker_pb2.ROLE_DECODE, True)
        async with patient.worker("d0"):
            await asyncio.gather(*asking)
    assert (await status(patient)).waiting.requests == 0


async def test_who_waits_leaves_when_it_is_cancelled_or_due(patient: Cluster) -> None:
    async with patient.worker("d0") as old:
        await patient.serving(old)
        await died(patient, old)
        call = patient.inference.Generate(pb.GenerateRequest(text="x"))
        await waiting(patient, 1)
        call.cancel()
        await waiting(patient, 0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await patient.generate(text="x", timeout_s=0.3)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await waiting(patient, 0)


@pytest.mark.slow
async def test_they_go_on_in_due_order_as_far_as_there_is_room(patient: Cluster) -> None:
    """Two workers are away. To the first that is back go as many as it can run, and no more."""
    async with patient.worker("d0") as d0, patient.worker("d1") as d1:
        await patient.serving(d0, d1)
        await died(patient, d0, d1)
        asking = []
        for number in range(100):
            asking.append(asyncio.create_task(asked(patient, request_id=f"r{number:03}")))
            await waiting(patient, number + 1)
        async with patient.worker(
            "d0", faults=Faults(stall_after=1), reports_requests=True
        ) as back:
            await patient.until(lambda: len(back.requests) == 64)  # its max_sequences
            await patient.serving(back)
            assert patient.router.waiting.figures().num_requests == 36
            names = sorted(request.request_id for request in back.requests)
            assert names == [f"r{number:03}" for number in range(64)]
            async with patient.worker("d1") as other:
                await patient.until(lambda: len(other.requests) >= 30)
                back.resume()
                await asyncio.gather(*asking)


async def test_a_new_request_does_not_pass_those_that_wait(patient: Cluster) -> None:
    async with patient.worker("d0") as d0, patient.worker("d1") as d1:
        await patient.serving(d0, d1)
        await died(patient, d0, d1)
        asking = [asyncio.create_task(asked(patient)) for _ in range(70)]
        await waiting(patient, 70)
        async with patient.worker(
            "d0", faults=Faults(stall_after=1), reports_requests=True
        ) as back:
            await patient.until(lambda: len(back.requests) == 64)
            late = asyncio.create_task(asked(patient, request_id="late"))
            await waiting(patient, 7)
            back.resume()
            await asyncio.gather(*asking, late)
            assert back.requests[-1].request_id == "late"


@pytest.mark.slow
async def test_patience_and_return_time_end_the_wait(checkpoint: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "apiVersion: penstock/v1\nkind: RoutingPolicy\nmetadata: {name: hasty}\n"
        "spec:\n  classes:\n  - {name: hasty, patience: 200ms}\n  - {name: never, patience: 0s}\n"
        "  - {name: patient}\n"
    )
    settings = {"return_s": 0.6, "policy_file": policy}
    async with Cluster(checkpoint, tmp_path, **settings) as cluster, cluster.worker("d0") as worker:
        await cluster.serving(worker)
        await died(cluster, worker)
        clock, waits = asyncio.get_running_loop().time, {}
        for name in ("never", "hasty", "patient"):
            began = clock()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asked(cluster, service_class=name)
            failed = failure(caught.value)
            assert (failed.reason, failed.code) == ("NO_WORKER", grpc.StatusCode.UNAVAILABLE)
            assert failed.retry_after_s is not None
            waits[name] = clock() - began
        assert waits["never"] < waits["hasty"] < waits["patient"]
        assert waits["hasty"] >= 0.2


async def test_those_that_wait_hold_so_many_bytes_and_no_more(
    checkpoint: Path, tmp_path: Path
) -> None:
    settings = {"return_s": 30.0, "max_waiting_bytes": 1000}
    async with Cluster(checkpoint, tmp_path, **settings) as cluster, cluster.worker("d0") as old:
        await cluster.serving(old)
        await died(cluster, old)
        asking = [asyncio.create_task(asked(cluster)) for _ in range(2)]
        await waiting(cluster, 2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asked(cluster)
        failed = failure(caught.value)
        assert (failed.reason, failed.retry_after_s) == ("OVERLOADED", 1.0)
        async with cluster.worker("d0"):
            await asyncio.gather(*asking)


async def test_early_rejection_prices_the_wait(checkpoint: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "apiVersion: penstock/v1\nkind: RoutingPolicy\nmetadata: {name: strict}\n"
        "spec:\n  classes:\n  - {name: quick, ttft: 300ms}\n  - {name: slow, ttft: 1m}\n"
        "  admission: {rejectsEarly: true}\n"
    )
    settings = {"return_s": 30.0, "policy_file": policy}
    async with Cluster(checkpoint, tmp_path, **settings) as cluster:
        cluster.router.pool.absences._returns_s.append(5.0)
        async with cluster.worker("d0") as old:
            await cluster.serving(old)
            await died(cluster, old)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asked(cluster, service_class="quick")
            failed = failure(caught.value)
            assert (failed.reason, "expected back" in failed.message) == ("OVERLOADED", True)
            assert failed.retry_after_s is not None
            assert failed.retry_after_s > 3.0
            asking = asyncio.create_task(asked(cluster, service_class="slow"))
            await waiting(cluster, 1)
            async with cluster.worker("d0"):
                await asking
