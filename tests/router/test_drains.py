"""Who may be told to drain, when several are told at once: the last decode worker stays."""

import asyncio
import itertools
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import grpc.aio
import pytest

from cluster.errors import InvalidRequest, Overloaded
from penstock.v1 import worker_pb2
from router import drains
from tests.doors import ask_cluster
from tests.redis_server import RedisServer, redis_server
from tests.router.cluster_of_fakes import Cluster, failure
from tests.router.fake_worker import TOKEN, FakeWorker
from tests.router.told_in_turn import ToldInTurn, all_orders
from worker.orders import Promises

NUM_ROUNDS = 5
LAST = "is the last decode worker that serves"


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def two_routers(
    stack: AsyncExitStack, checkpoint: Path, folder: Path
) -> tuple[list[Cluster], RedisServer]:
    """That share a store."""
    redis = await stack.enter_async_context(redis_server())
    return [
        await stack.enter_async_context(Cluster(checkpoint, folder, store=redis.url))
        for _ in range(2)
    ], redis


async def workers(stack: AsyncExitStack, *routers: Cluster, num: int) -> list[FakeWorker]:
    """Decode workers that all routers send requests to."""
    made = [
        await stack.enter_async_context(routers[0].worker(f"d{number}")) for number in range(num)
    ]
    for router in routers:
        await router.serving(*made)
    return made


async def drain(router: Cluster, worker: FakeWorker, *, force: bool = False) -> str:
    """Why it was refused; empty: it drains."""
    request = worker_pb2.DrainRequest(worker_id=worker.name, limit_seconds=5.0, force=force)
    try:
        await ask_cluster(router.channel, "Drain", request, TOKEN)
    except grpc.aio.AioRpcError as refused:
        return failure(refused).message
    return ""


async def undrain(router: Cluster, worker: FakeWorker) -> None:
    request = worker_pb2.UndrainRequest(worker_id=worker.name)
    await ask_cluster(router.channel, "Undrain", request, TOKEN)


@pytest.mark.parametrize(("num_routers", "is_store_away"), [(1, False), (2, False), (2, True)])
async def test_of_the_last_two_that_are_told_at_once_one_stays(
    stack: AsyncExitStack,
    checkpoint: Path,
    tmp_path: Path,
    num_routers: int,
    is_store_away: bool,
) -> None:
    """Through one router, or through two at the same moment, also while these share no store."""
    if num_routers == 1:
        routers = [await stack.enter_async_context(Cluster(checkpoint, tmp_path))]
    else:
        routers, redis = await two_routers(stack, checkpoint, tmp_path)
    both = await workers(stack, *routers, num=2)
    if is_store_away:
        os.kill(redis.pid, signal.SIGKILL)
    for _ in range(NUM_ROUNDS):
        told = [drain(routers[number % num_routers], worker) for number, worker in enumerate(both)]
        refusals = await asyncio.gather(*told)
        assert sorted(LAST in refusal for refusal in refusals) == [False, True]
        [gone] = [worker for worker in both if worker.load.is_draining]
        await undrain(routers[-1], gone)
        for router in routers:
            await router.serving(*both)


async def test_who_is_made_to_drain_counts_for_who_is_only_asked(
    stack: AsyncExitStack, checkpoint: Path, tmp_path: Path
) -> None:
    routers, _ = await two_routers(stack, checkpoint, tmp_path)
    one, other = await workers(stack, *routers, num=2)
    await drain(routers[0], one, force=True)
    assert LAST in await drain(routers[1], other)
    assert await drain(routers[1], other, force=True) == ""


async def test_who_refused_to_drain_is_not_counted_as_one_that_does(
    stack: AsyncExitStack, checkpoint: Path, tmp_path: Path
) -> None:
    router = await stack.enter_async_context(Cluster(checkpoint, tmp_path))
    one, other = await workers(stack, router, num=2)
    one.refuses_drain = True
    assert "not now" in await drain(router, one)
    assert await drain(router, other) == ""


async def test_a_worker_of_a_release_before_promises_counts_by_its_reports(
    stack: AsyncExitStack, checkpoint: Path, tmp_path: Path
) -> None:
    router = await stack.enter_async_context(Cluster(checkpoint, tmp_path))
    old = await stack.enter_async_context(router.worker("d0", is_old=True))
    new = await stack.enter_async_context(router.worker("d1"))
    await router.serving(old, new)
    assert await drain(router, new) == ""
    await router.until(lambda: len(router.router.pool.snapshot(router.router.clock()).decode) == 1)
    assert LAST in await drain(router, old)


async def test_who_has_gone_holds_nobody_back(
    stack: AsyncExitStack, checkpoint: Path, tmp_path: Path
) -> None:
    """Of three, in whichever order, two go one after the other, without a pause."""
    router = await stack.enter_async_context(Cluster(checkpoint, tmp_path))
    three = await workers(stack, router, num=3)
    for first, second, last in itertools.permutations(three):
        assert await drain(router, first) == ""
        assert await drain(router, second) == ""
        assert LAST in await drain(router, last)
        for gone in (first, second):
            await undrain(router, gone)
        await router.serving(*three)


async def test_one_of_two_goes_in_whichever_order_what_routers_say_arrives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(drains, "_PAUSES_S", ())
    num_orders = 0
    for choose in all_orders():
        told = ToldInTurn(2)
        refusals = await told.tell_all(choose, is_answer_lost=lambda: False)
        assert len(told.serving) == 1, refusals
        num_orders += 1
    assert num_orders >= 10


@pytest.mark.slow
@pytest.mark.parametrize("loss", [0.0, 0.2])
@pytest.mark.parametrize("num_workers", [2, 3, 4])
async def test_one_stays_though_all_are_told_and_answers_are_lost(
    monkeypatch: pytest.MonkeyPatch, num_workers: int, loss: float
) -> None:
    monkeypatch.setattr(drains, "_PAUSES_S", (1e-6,))
    chance = random.Random(num_workers)
    for _ in range(150):
        told = ToldInTurn(num_workers)
        await told.tell_all(chance.randrange, is_answer_lost=lambda: chance.random() < loss)
        assert told.serving
        assert loss or len(told.serving) < num_workers


def test_a_promise_ends_by_itself_and_there_are_not_too_many() -> None:
    now = 0.0
    promises = Promises(lambda: now)
    promises.give("one", 5.0)
    promises.give("one", 0.0)
    assert promises.left_s == 0.0
    for number in range(64):
        promises.give(str(number), 5.0)
    with pytest.raises(Overloaded, match="64 drains wait"):
        promises.give("x", 5.0)
    promises.give("7", 9.0)
    assert promises.left_s == 9.0
    now = 10.0
    assert promises.left_s == 0.0
    promises.give("x", 5.0)
    for name, seconds in (
        ("", 1.0),
        ("x" * 65, 1.0),
        ("x", -1.0),
        ("x", 11.0),
        ("x", float("nan")),
    ):
        with pytest.raises(InvalidRequest, match="promise"):
            promises.give(name, seconds)
