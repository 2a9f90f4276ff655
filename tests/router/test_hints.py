"""What a request says about how it is to be served, through the front door to fake workers."""

import grpc
import grpc.aio
import pytest

from penstock.v1 import inference_pb2 as pb
from router.policy import Policy
from router.policy_settings import QueueOrder, ServiceClass
from router.rollout.generations import Generations
from tests.router.cluster_of_fakes import Cluster, failure
from tests.router.fake_worker import FakeWorker

PROMPT = pb.TokenIds(ids=[1] * 64)
CLASSES = (ServiceClass(name="chat", ttft_s=1.0), ServiceClass(name="batch", ttft_s=60.0))


async def due_s(cluster: Cluster, worker: FakeWorker, **fields: object) -> float:
    """As the worker hears it."""
    answer = await cluster.generate(token_ids=PROMPT, **fields)
    assert answer.is_complete
    return worker.requests[-1].due_seconds


async def test_a_class_decides_when_its_requests_are_due(cluster: Cluster) -> None:
    policy = Policy(classes=CLASSES, queue=QueueOrder(stretch=0.0))
    cluster.router.placer.generations = Generations(policy)
    async with cluster.worker("d0") as worker:
        await cluster.serving(worker)
        assert await due_s(cluster, worker) == pytest.approx(1.0, abs=0.3)
        assert await due_s(cluster, worker, service_class="batch") == pytest.approx(60.0, abs=0.3)
        assert await due_s(
            cluster, worker, service_class="batch", ttft_budget={"seconds": 5}
        ) == pytest.approx(5.0, abs=0.3)
        counters = cluster.router.placer.books.observed.attainment.by_class()
        assert [counters[name].num_placed for name in ("batch", "chat")] == [2, 1]
        assert [counters[name].num_in_time for name in ("batch", "chat")] == [2, 1]


async def test_an_unknown_class_is_an_error_of_the_caller(cluster: Cluster) -> None:
    async with cluster.worker("d0") as worker:
        await cluster.serving(worker)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cluster.generate(text="x", service_class="gold")
        refused = failure(caught.value)
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.fields == ("service_class",)
        assert "choose from 'default'" in refused.message
        assert worker.requests == []


async def test_a_session_stays_with_the_worker_that_decoded_for_it(cluster: Cluster) -> None:
    async with cluster.worker("d0") as first, cluster.worker("d1") as second:
        await cluster.serving(first, second)
        for talk in range(8):
            served = set()
            for _ in range(3):
                # Fakes cache nothing: without a session each request would be drawn anew.
                answer = await cluster.generate(token_ids=PROMPT, session_key=f"talk-{talk}")
                served.add(answer.messages[0].accepted.decode_worker)
            assert len(served) == 1


async def test_the_length_of_answers_is_learned(cluster: Cluster) -> None:
    async with cluster.worker("d0") as worker:
        await cluster.serving(worker)
        for _ in range(40):
            await cluster.generate(token_ids=PROMPT, stop={"max_tokens": 4})
        placer = cluster.router.placer
        placed = placer.books.observed
        assert placed.lengths.mean == pytest.approx(4 + 8 * 124 / 48)
        assert placed.accuracy.ttft.num_known == 40
        assert placed.accuracy.itl.num_known == 40


async def test_a_better_worker_is_not_given_up_for_a_session(cluster: Cluster) -> None:
    async with cluster.worker("d0") as first, cluster.worker("d1") as second:
        await cluster.serving(first, second)
        await cluster.generate(token_ids=PROMPT, session_key="talk")
        home, other = (first, second) if first.requests else (second, first)
        home.report(backlog=((0.0, 30.0),))
        pool = cluster.router.pool
        await cluster.until(
            lambda: any(load.backlog for load in pool.snapshot(cluster.router.clock()).loads)
        )
        await cluster.generate(token_ids=PROMPT, session_key="talk")
        assert len(other.requests) == 1
