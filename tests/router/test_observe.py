"""What a router tells a planner, and what it believes of it."""

import asyncio
from collections.abc import AsyncIterator
from math import nan
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from cluster.channel import open_channel
from cluster.errors import Draining, InvalidRequest
from penstock.v1 import inference_pb2 as pb
from penstock.v1 import worker_pb2
from router.learned.traffic import Arrival, Traffic
from tests.router.cluster_of_fakes import Answer, Cluster, failure
from tests.router.fake_worker import TOKEN, Faults

PROMPT = list(range(1, 41))


@pytest.fixture
async def alone(checkpoint: Path, tmp_path: Path) -> AsyncIterator[Cluster]:
    """Nobody is expected back."""
    async with Cluster(checkpoint, tmp_path) as cluster:
        yield cluster
        assert cluster.router.waiting.is_empty


async def observed(cluster: Cluster, **fields: float) -> worker_pb2.ObserveResponse:
    said = {"window_seconds": 600.0, "next_seconds": 5.0, **fields}
    async with open_channel(cluster.address, TOKEN) as channel:
        request = worker_pb2.ObserveRequest(**said)
        return await channel.unary("penstock.v1.Cluster", "Observe", request, timeout_s=5)


async def asked(cluster: Cluster, **fields: Any) -> Answer:
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=PROMPT), **fields)
    return await cluster.generate(request, timeout_s=20)


async def refused(cluster: Cluster) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asked(cluster)
    assert failure(caught.value).reason == "NO_WORKER"


async def waiting(cluster: Cluster, num: int) -> None:
    await cluster.until(lambda: cluster.router.waiting.figures().num_requests == num)


async def test_what_came_is_told_from_the_first_question_on(alone: Cluster) -> None:
    async with alone.worker("d0") as d0:
        await alone.serving(d0)
        await asked(alone)
        first = await observed(alone)
        assert list(first.requests) == []
        assert first.watched_seconds < 1.0
        await asked(alone)
        await asked(alone)
        second = await observed(alone)
        assert [each.prompt_tokens for each in second.requests] == [40, 40]
        for each in second.requests:
            assert each.output_tokens == 40.0
            assert each.ttft_seconds > 0.0
            assert each.itl_seconds > 0.0
            assert each.age_seconds >= each.ttft_seconds
            assert not each.lost
        assert second.watched_seconds > 0.0
        [worker] = second.workers
        assert (worker.member.worker.worker_id, worker.serving) == ("d0", True)
        assert worker.load.num_blocks == 1000


async def test_a_request_waits_for_the_worker_that_a_planner_starts_for_it(alone: Cluster) -> None:
    assert not alone.router.is_serving
    await refused(alone)
    await observed(alone, start_seconds=60.0)
    assert alone.router.is_serving  # who balances load may send requests here
    asking = asyncio.create_task(asked(alone))
    await waiting(alone, 1)
    told = await observed(alone, start_seconds=60.0)
    assert told.waiting == 1
    assert len(told.requests) == 1  # the one before came when nobody had asked
    async with alone.worker("d0"):
        assert (await asking).token_ids == PROMPT


async def test_a_request_that_finds_the_last_worker_draining_waits_and_it_may_come_back(
    alone: Cluster,
) -> None:
    faults = Faults(refuse=Draining("This worker drains."))
    async with alone.worker("d0", faults=faults, report_interval_s=60.0) as d0:
        await alone.serving(d0)
        await observed(alone, start_seconds=60.0)
        asking = asyncio.create_task(asked(alone))
        await waiting(alone, 1)
        faults.refuse = None
        d0.report(is_serving=True)
        assert (await asking).token_ids == PROMPT


async def test_a_planner_that_falls_silent_is_believed_no_longer(alone: Cluster) -> None:
    await observed(alone, start_seconds=60.0, next_seconds=0.05)
    await alone.until(lambda: not alone.router.is_serving)
    await refused(alone)


@pytest.mark.parametrize(
    "field",
    [
        {"window_seconds": 0.0},
        {"window_seconds": nan},
        {"window_seconds": 1e9},
        {"next_seconds": -1.0},
        {"start_seconds": -1.0},
        {"start_seconds": 1e9},
    ],
)
async def test_spans_that_make_no_sense_are_refused(
    alone: Cluster, field: dict[str, float]
) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(field))):
        await observed(alone, **field)


def arrival(at_s: float) -> Arrival:
    return Arrival(
        arrived_at=at_s,
        num_prompt_tokens=10,
        num_cached_tokens=0,
        num_output_tokens=5.0,
        target_ttft_s=1.0,
        target_itl_s=0.1,
    )


def test_what_is_forgotten_is_not_taken_for_quiet() -> None:
    traffic = Traffic()
    traffic.keep(100.0, 200.0)
    assert traffic.since_s == 100.0
    for number in range(5000):
        traffic.begin(arrival(101.0 + number / 1000))
    assert traffic.since_s == pytest.approx(101.0 + (5000 - 4096) / 1000)
    assert not traffic.is_kept(200.0)
    traffic.keep(250.0, 300.0)
    assert (traffic.since_s, list(traffic.arrivals)) == (250.0, [])
