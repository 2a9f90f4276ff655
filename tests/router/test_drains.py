"""Who may be told to drain, when several are told at once: the last decode worker stays."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import grpc.aio
import pytest

from cluster.errors import StoreUnavailable
from cluster.store import MemoryStore
from cluster.types import Incarnation
from penstock.v1 import worker_pb2
from router.drain_notes import DrainNotes
from tests.doors import ask_cluster
from tests.redis_server import RedisServer, redis_server
from tests.router.cluster_of_fakes import Cluster, failure
from tests.router.fake_worker import TOKEN, FakeWorker

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


@pytest.mark.parametrize("num_routers", [1, 2])
async def test_of_the_last_two_that_are_told_at_once_one_stays(
    stack: AsyncExitStack, checkpoint: Path, tmp_path: Path, num_routers: int
) -> None:
    """Through one router, or through two at the same moment."""
    if num_routers == 1:
        routers = [await stack.enter_async_context(Cluster(checkpoint, tmp_path))]
    else:
        routers, _ = await two_routers(stack, checkpoint, tmp_path)
    both = await workers(stack, *routers, num=2)
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


async def test_without_their_store_routers_go_by_reports(
    stack: AsyncExitStack, checkpoint: Path, tmp_path: Path
) -> None:
    routers, redis = await two_routers(stack, checkpoint, tmp_path)
    one, other = await workers(stack, *routers, num=2)
    os.kill(redis.pid, signal.SIGKILL)
    assert sorted(await asyncio.gather(drain(routers[0], one), drain(routers[0], other)))[0] == ""
    [stays] = [worker for worker in (one, other) if not worker.load.is_draining]
    await routers[1].until(
        lambda: len(routers[1].router.pool.snapshot(routers[1].router.clock()).decode) == 1
    )
    assert LAST in await drain(routers[1], stays)


class NoStore(MemoryStore):
    async def get(self, key: str) -> bytes | None:
        raise StoreUnavailable("It is away.")


@pytest.mark.parametrize("kind", [MemoryStore, NoStore])
async def test_notes_are_kept_until_reports_must_have_come(kind: type[MemoryStore]) -> None:
    now = 0.0
    store = kind(clock=lambda: now)
    one, other = (DrainNotes(store, clock=lambda: now) for _ in range(2))
    seen: list[frozenset[Incarnation]] = []
    first, second = Incarnation("1"), Incarnation("2")
    await one.add(first, seen.append)
    await one.add(second, seen.append)
    await one.remove(first)
    await one.add(first, seen.append)
    assert seen == [frozenset(), {first}, {second}]
    await other.add(second, seen.append)
    assert seen[3] == (frozenset() if kind is NoStore else {first, second})
    now = 60.0
    await one.add(first, seen.append)
    assert seen[4] == frozenset()


async def test_what_is_stored_and_not_understood_is_no_note() -> None:
    store = MemoryStore()
    seen: list[frozenset[Incarnation]] = []
    for value in (b"{", b"[1]", b'{"a": 1}', b"\xff"):
        await store.put("drains", value)
        await DrainNotes(store).add(Incarnation("1"), seen.append)
    assert set(seen) == {frozenset()}
