"""A worker that is told, through the router, to drain, to serve again, or to go on in the other
role: with the real router, in one event loop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster.channel import open_channel
from cluster.errors import InvalidRequest, WorkerLost
from cluster.types import Incarnation, Role, WorkerId
from decode_worker.config import DecodeWorkerConfig
from penstock.v1 import worker_pb2 as pb
from tests.router.cluster_of_fakes import Answer
from tests.router.fake_worker import TOKEN
from tests.scraped import scraped
from tests.workers.answers import expected, greedy, prompt_of
from tests.workers.local_cluster import LocalCluster, stuck
from worker_roles.lives import Lives

PROMPT = prompt_of(5, 60)
X = WorkerId("x")
ROLES = {Role.PREFILL: pb.ROLE_PREFILL, Role.DECODE: pb.ROLE_DECODE}


async def tell(cluster: LocalCluster, method: str, **request: Any) -> Any:
    message = {"Drain": pb.DrainRequest, "Undrain": pb.UndrainRequest}[method](**request)
    async with open_channel(cluster.address, TOKEN) as channel:
        return await channel.unary("penstock.v1.Cluster", method, message, timeout_s=5)


async def test_an_answer_outlasts_the_drain_of_its_worker_which_then_serves_again(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with LocalCluster(checkpoint, tmp_path, decode=[{}, {}], prefill=[]) as cluster:
        answer = Answer()
        task = asyncio.create_task(cluster.generate(greedy(PROMPT, 200), answer=answer))
        await cluster.until(lambda: len(answer.messages) > 3)
        name = answer.messages[0].accepted.decode_worker
        busy, drain = cluster.named(name), cluster.named(name).worker.drain
        busy.gate.close()
        await stuck(busy)
        told = await tell(cluster, "Drain", worker_id=name, limit_seconds=0.05)
        assert told.open_calls == 1
        await task
        busy.gate.open()
        assert answer.token_ids == expected(PROMPT, 200)
        await cluster.until(lambda: drain.num_open_calls == 0)
        await cluster.until(lambda: not cluster.router.waiting.num_bytes)
        assert not busy.task.done()
        assert busy.worker.load().drain is not None
        other = await cluster.generate(greedy(PROMPT, 4))
        assert other.messages[0].accepted.decode_worker != name
        with pytest.raises(InvalidRequest, match="the last decode worker that serves"):
            await tell(cluster, "Drain", worker_id=other.messages[0].accepted.decode_worker)
        await tell(cluster, "Undrain", worker_id=name)
        await cluster.until(lambda: cluster.router.pool.room(cluster.router.clock()) > 64)
        assert busy.worker.load().drain is None


@pytest.mark.parametrize("limit_s", [-1.0, 1e9, float("nan"), float("inf")])
async def test_a_bound_that_is_none_is_refused(
    checkpoint: Path, tmp_path: Path, limit_s: float
) -> None:
    async with LocalCluster(checkpoint, tmp_path, prefill=[{}]) as cluster:
        with pytest.raises(InvalidRequest, match="A drain takes 0 to 86,400 seconds"):
            await tell(cluster, "Drain", worker_id="prefill-0", limit_seconds=limit_s)
        with pytest.raises(InvalidRequest, match="'prefill-0' is a prefill worker already"):
            await tell(cluster, "Drain", worker_id="prefill-0", then=pb.ROLE_PREFILL)
        with pytest.raises(InvalidRequest, match="no worker 'y' here; there is decode-0, prefill"):
            await tell(cluster, "Undrain", worker_id="y")
        assert not cluster.prefill[0].worker.open_calls.is_draining


@asynccontextmanager
async def living(cluster: LocalCluster) -> AsyncIterator[None]:
    """A worker 'x' that begins as a decode worker and may change its role."""
    config = DecodeWorkerConfig(
        worker_id=X,
        engine="echo",
        checkpoint=str(cluster.checkpoint),
        model="echo",
        router=cluster.address,
        secrets_file=cluster.directory / "secrets.yaml",
        run_dir=str(cluster.directory),
        num_blocks=64,
        drain_s=5.0,
        transports=("shared_memory",),
    )
    lives, end = Lives(config), asyncio.Event()
    task = asyncio.create_task(lives.serve(end, lambda **_: None))
    try:
        yield
    finally:
        end.set()
        await task


def life(cluster: LocalCluster) -> Incarnation | None:
    """Of 'x', as the router knows it, where it would be sent requests."""
    pool = cluster.router.pool
    names = {load.worker for load in pool.snapshot(cluster.router.clock()).loads}
    worker = pool.address(X)
    return worker.incarnation if worker is not None and X in names else None


async def test_a_worker_goes_on_in_the_other_role_and_nothing_is_left_of_the_one_before(
    checkpoint: Path, tmp_path: Path
) -> None:
    """There and back: as a prefill worker it writes into the other's pool, whose pair with the
    life before, though its process lives on, is over."""
    async with LocalCluster(
        checkpoint, tmp_path, prefill=[], door="shared_memory", disaggregate="always"
    ) as cluster:
        index, pairs = cluster.router.index, cluster.decode[0].pairs
        async with living(cluster):
            await cluster.until(lambda: life(cluster) is not None)
            past, places = [], set()
            for number, role in enumerate((Role.PREFILL, Role.DECODE, Role.PREFILL)):
                answers = [greedy(prompt_of(20 * number + each, 60), 4) for each in range(8)]
                await asyncio.gather(*map(cluster.generate, answers))
                await cluster.until(lambda: index.num_grains_of(X) > 0)
                told = await tell(cluster, "Drain", worker_id=X, then=ROLES[role])
                past.append(told.incarnation)
                await cluster.until(lambda: (life(cluster) or "") > past[-1])
                assert index.num_grains_of(X) == 0
                now = life(cluster)
                if role is Role.PREFILL:
                    await cluster.until(partial(pairs.is_connected, now))
                await cluster.until(lambda: not any(map(pairs.is_connected, past)))
                members = await cluster.router.fleet._membership.members()
                [member] = [each for each in members if each.worker.worker_id == X]
                assert (member.role, member.worker.incarnation) == (role, now)
                assert member.past_lives == tuple(past)
                assert role in (await scraped(member.metrics)).labels("penstock_build_info")
                places.add(member.metrics)
                assert [path.name for path in tmp_path.glob(f"kv-{now}")] == [f"kv-{now}"]
                assert not [path for each in past for path in tmp_path.glob(f"kv-{each}")]
            assert len(places) == 1  # who scrapes it need not look for it again
            answer = await cluster.generate(greedy(PROMPT, 20))
            assert answer.messages[0].accepted.prefill_worker == X
            assert answer.token_ids == expected(PROMPT, 20)
            assert answer.messages[-1].finished.timeline.recomputes == 0
            with pytest.raises(WorkerLost, match="does not listen here any more"):
                await _call_as_before(cluster, past[-1])


async def _call_as_before(cluster: LocalCluster, incarnation: str) -> None:
    """Somebody who has yet to hear that a life is over."""
    worker = cluster.router.pool.address(X)
    assert worker is not None
    async with open_channel(worker.address, TOKEN, f"{incarnation}@{worker.address}") as channel:
        request = pb.FenceRequest(incarnation="other", epochs=[1])
        await channel.unary("penstock.v1.Worker", "Fence", request, timeout_s=5)
