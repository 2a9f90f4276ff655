"""A router that is killed under load and started again knows within a second what it knew."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cluster.channel import open_channel
from cluster.membership import Membership
from cluster.types import Fingerprint
from penstock.v1 import worker_pb2
from router import fleet
from tests.redis_server import free_port
from tests.router.cluster_of_fakes import Cluster
from tests.router.fake_worker import TOKEN, FakeWorker
from tests.router.router_process import fingerprint, router_process, write_config
from tests.router.sessions import Clients, Sessions, key_of

SECRET = bytes(16)  # of `write_config`
WARM_S = 1.0  # after it listens


@asynccontextmanager
async def filled_workers(
    router: str, shared: Fingerprint, num_workers: int, num_grains: int
) -> AsyncIterator[tuple[list[FakeWorker], Sessions]]:
    """Workers that hold so many grains in all, the beginnings of all sessions among them."""
    async with contextlib.AsyncExitStack() as stack:
        sessions = Sessions.drawn(10 * num_workers, shared.hash_grain)
        workers = [
            FakeWorker(f"d{i}", router, shared, "echo", hash_key=key_of(SECRET, shared))
            for i in range(num_workers)
        ]
        sessions.fill(workers, num_grains // num_workers)
        for worker in workers:
            await stack.enter_async_context(worker)
        yield workers, sessions


async def status(router: str) -> worker_pb2.StatusResponse:
    async with open_channel(router, TOKEN) as channel:
        return await channel.unary(
            "penstock.v1.Cluster", "Status", worker_pb2.StatusRequest(), timeout_s=10
        )


async def until_served(clients: Clients, num: int, since: float) -> None:
    async with asyncio.timeout(60):
        while clients.num_served(since) < num:  # noqa: ASYNC110 - of processes, from outside
            await asyncio.sleep(0.01)


async def killed_and_started_again(
    checkpoint: Path, tmp_path: Path, num_grains: int, *, num_clients: int, num: int
) -> None:
    """`num`: requests that are judged on each side. Of several clients two may want one worker at
    once, and one of them is served elsewhere: by chance, so that more are needed to judge."""
    address = f"127.0.0.1:{free_port()}"
    config = write_config(tmp_path, checkpoint, address=address)
    clock = asyncio.get_running_loop().time
    async with filled_workers(address, fingerprint(checkpoint), 8, num_grains) as (_, sessions):
        clients = Clients(sessions, [address], num_clients)
        load = asyncio.create_task(clients.run())
        async with router_process(config) as router:
            warm_at = clock() + WARM_S
            await until_served(clients, num, warm_at)
            before = clients.hit_share(warm_at)
            router.process.kill()
            await router.process.wait()
        async with router_process(config):
            listening_at = clock()
            warm_at = listening_at + WARM_S
            await until_served(clients, num, warm_at)
            after = clients.hit_share(warm_at)
            known = await status(address)
        load.cancel()
        await asyncio.wait([load])
    first = next(s for s in clients.served if s.asked_at > listening_at)
    answered_s = first.asked_at + first.seconds - listening_at
    print(f"answers {answered_s:.2f} s after it listened, {clients.num_refused} tries were refused")
    print(f"hit share {before:.3f} before, {after:.3f} after a second")
    assert before > 0.8, "the load reuses nothing"
    assert after >= 0.95 * before
    assert known.index_grains >= 0.99 * num_grains


@asynccontextmanager
async def beside_running_workers(
    checkpoint: Path, directory: Path, *names: str
) -> AsyncIterator[tuple[Cluster, list[FakeWorker]]]:
    """A router that finds these in its store as it starts. They do not speak yet."""
    cluster = Cluster(checkpoint, directory)
    async with contextlib.AsyncExitStack() as stack:
        workers = [cluster.worker(name) for name in names]
        for worker in workers:
            worker.router = "127.0.0.1:1"  # it registers in the store, below
            worker.speaks.clear()
            await stack.enter_async_context(worker.without_heartbeat())
            membership = Membership(cluster.router.store)
            await membership.join(worker.member, ttl_s=60)
        yield await stack.enter_async_context(cluster), workers


async def test_a_router_places_nothing_before_all_that_it_knows_of_have_told_what_they_hold(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with beside_running_workers(checkpoint, tmp_path, "d0", "d1") as (cluster, (d0, d1)):
        asked = asyncio.create_task(cluster.generate(text="x"))
        d0.speaks.set()
        await cluster.serving(d0)
        assert not cluster.router.is_serving
        assert (await status(cluster.address)).warming_up
        assert not d0.requests
        d1.speaks.set()
        assert (await asked).is_complete
        assert cluster.router.is_serving
        assert not (await status(cluster.address)).warming_up


async def test_a_worker_that_cannot_be_reached_is_not_waited_for(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with beside_running_workers(checkpoint, tmp_path, "d0", "d1") as (cluster, (d0, d1)):
        d0.speaks.set()
        await d1.die()
        assert (await cluster.generate(text="x")).is_complete


@pytest.mark.slow
async def test_a_worker_that_says_nothing_is_waited_for_no_longer_than_the_bound(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "WARM_UP_S", 0.5)
    async with beside_running_workers(checkpoint, tmp_path, "d0", "d1") as (cluster, (d0, _)):
        d0.speaks.set()
        assert (await cluster.generate(text="x")).is_complete


@pytest.mark.alone
@pytest.mark.slow
async def test_a_router_killed_under_load_is_warm_a_second_after_it_listens(
    checkpoint: Path, tmp_path: Path
) -> None:
    await killed_and_started_again(checkpoint, tmp_path, 50_000, num_clients=1, num=150)


@pytest.mark.prove
async def test_with_half_a_million_grains_too(checkpoint: Path, tmp_path: Path) -> None:
    await killed_and_started_again(checkpoint, tmp_path, 500_000, num_clients=4, num=600)
