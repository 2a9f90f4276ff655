"""Admission by prediction, through the front door to fake workers."""

import asyncio
import heapq

import grpc
import grpc.aio
import pytest

from cluster.channel import open_channel
from cluster.errors import Overloaded
from penstock.v1 import inference_pb2 as pb
from penstock.v1 import worker_pb2
from router.policy import Policy
from router.policy_settings import AdmissionRules, ServiceClass, TenantShare
from router.rollout.generations import Generations
from tests.router.cluster_of_fakes import Cluster, Failure, failure
from tests.router.fake_worker import TOKEN, FakeWorker, Faults
from tests.router.one_worker import OneWorker

PROMPT = pb.TokenIds(ids=[1] * 64)
REJECTS = Policy(
    classes=(ServiceClass(name="chat", ttft_s=1.0), ServiceClass(name="batch", ttft_s=60.0)),
    admission=AdmissionRules(rejects_early=True, slack=1.0),
)


async def busy(cluster: Cluster, worker: FakeWorker, seconds: float) -> None:
    """So much prompt work waits there, as it reports."""
    worker.report(backlog=((0.0, seconds),) if seconds else ())
    pool, name = cluster.router.pool, worker.name

    def is_known() -> bool:
        loads = pool.snapshot(cluster.router.clock()).loads
        backlog = loads[loads.positions[name]].backlog if name in loads.positions else ()
        return bool(backlog) == bool(seconds)

    await cluster.until(is_known)


async def refused(cluster: Cluster, **fields: object) -> Failure:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await cluster.generate(token_ids=PROMPT, **fields)
    return failure(caught.value)


async def test_a_request_that_would_be_late_is_refused_and_told_when_to_come(
    cluster: Cluster,
) -> None:
    cluster.router.placer.generations = Generations(REJECTS)
    async with cluster.worker("d0") as worker:
        await cluster.serving(worker)
        await busy(cluster, worker, 30.0)
        found = await refused(cluster)
        assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "OVERLOADED")
        assert found.retry_after_s == pytest.approx(29.0, abs=0.5)
        assert "Class 'chat' promises a first token within 1 s" in found.message
        assert worker.requests == []
        assert (await cluster.generate(token_ids=PROMPT, service_class="batch")).is_complete
        await refused(cluster, service_class="batch", ttft_budget={"seconds": 2})
        await busy(cluster, worker, 0.0)
        assert (await cluster.generate(token_ids=PROMPT)).is_complete
        counters = cluster.router.placer.books.observed.attainment.by_class()
        assert (counters["chat"].num_rejected, counters["batch"].num_rejected) == (1, 1)
        assert (counters["chat"].num_placed, counters["batch"].num_placed) == (1, 1)


async def test_by_default_nobody_is_refused_for_a_prediction(cluster: Cluster) -> None:
    async with cluster.worker("d0") as worker:
        await cluster.serving(worker)
        await busy(cluster, worker, 30.0)
        assert (await cluster.generate(token_ids=PROMPT)).is_complete


async def test_who_was_taken_on_is_not_shed_when_its_worker_fails(cluster: Cluster) -> None:
    cluster.router.placer.generations = Generations(REJECTS)
    async with cluster.worker("d0", faults=Faults(stall_after=1)) as first:
        await cluster.serving(first)
        answering = asyncio.create_task(cluster.generate(token_ids=PROMPT))
        await first.served.wait()
        async with cluster.worker("d1") as second:
            await cluster.serving(second)
            await busy(cluster, second, 30.0)
            await first.die()
            answer = await answering
            assert answer.is_complete
            assert len(second.requests) == 1


async def test_a_tenant_over_its_share_is_refused_first_while_workers_are_short(
    cluster: Cluster,
) -> None:
    """Callers are all of one tenant until they are authenticated: the other one is charged."""
    placer = cluster.router.placer
    placer.generations = Generations(
        Policy(
            classes=(ServiceClass(name="chat", ttft_s=1.0),),
            tenants=(TenantShare(name="default"), TenantShare(name="other", share=9.0)),
            admission=AdmissionRules(rejects_early=True, slack=1.0),
        )
    )
    async with cluster.worker("d0") as worker:
        await cluster.serving(worker)
        placer.books.tenants.charge("default", 100.0, cluster.router.clock())
        placer.books.tenants.charge("other", 100.0, cluster.router.clock())
        await busy(cluster, worker, 0.5)
        assert (await cluster.generate(token_ids=PROMPT)).is_complete  # nobody is late
        on_time = worker.requests[-1].due_seconds
        placer.books.tenants.late(cluster.router.clock())
        found = await refused(cluster)
        assert "whose tenant uses 5.0 times its share" in found.message
        await busy(cluster, worker, 0.0)
        placer.books.tenants.late(cluster.router.clock())
        assert (await cluster.generate(token_ids=PROMPT)).is_complete
        assert worker.requests[-1].due_seconds == pytest.approx(on_time + 4.0, abs=0.2)


async def test_status_tells_classes_tenants_and_errors(cluster: Cluster) -> None:
    cluster.router.placer.generations = Generations(REJECTS)
    async with cluster.worker("d0") as worker, open_channel(cluster.address, TOKEN) as channel:
        await cluster.serving(worker)
        for _ in range(3):
            await cluster.generate(token_ids=PROMPT, session_key="talk")
        await busy(cluster, worker, 30.0)
        await refused(cluster)
        request = worker_pb2.StatusRequest()
        status = await channel.unary("penstock.v1.Cluster", "Status", request, timeout_s=5)
        batch, chat = status.classes
        assert (batch.name, batch.placed, batch.ttft_seconds) == ("batch", 0, 60.0)
        assert (chat.name, chat.placed, chat.rejected, chat.started) == ("chat", 3, 1, 3)
        assert (chat.in_time, chat.finished, chat.ttft_seconds) == (3, 3, 1.0)
        assert 64 < chat.answer_tokens < 128
        assert batch.answer_tokens == 128
        assert status.short_of_workers
        assert status.sessions == 1
        (tenant,) = status.tenants
        assert (tenant.name, tenant.excess) == ("default", 1.0)
        assert tenant.used_seconds > 0
        assert status.accuracy.ttft.samples == 3
        assert status.accuracy.ttft.ratio.p50 > 0
        assert status.accuracy.itl.samples == 3


def test_a_burst_is_served_by_and_by_if_all_come_again_when_they_are_told() -> None:
    """Twelve at once, of 0.2 s each, where a first token is promised within a second."""
    worker, num_refused = OneWorker(REJECTS, work_s=0.2), 0
    coming = [0.0] * 12
    while coming:
        now = heapq.heappop(coming)
        try:
            worker.ask(now)
        except Overloaded as error:
            num_refused += 1
            heapq.heappush(coming, now + error.retry_after_s)
    assert num_refused == 12 - 5  # each of them once
    assert worker.free_s == pytest.approx(12 * 0.2)  # it was never idle
