"""A worker drains, serves again, and changes its role, in real processes under load: no request
fails, every answer is the undisturbed one, and of the old life nothing is left."""

import asyncio
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.membership import Membership
from cluster.redis_store import RedisStore
from cluster.sealed_store import SealedStore
from cluster.secrets import load_secrets
from cluster.store import prefix_of
from cluster.types import Member, Role
from deploy.launcher import LocalCluster
from deploy.plan import ClusterPlan
from kv_transfer.pool import PREFIX
from penstock import PenstockError
from penstock.aio import AsyncClient
from penstock.cli.cluster_calls import ask_cluster
from penstock.cli.status import fetch_status
from penstock.v1 import worker_pb2 as pb
from tests.processes.streams import Streams
from tests.redis_server import redis_server
from tests.router.checkpoint import write_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SHIPPED = Path(__file__).parents[2] / "shipped_model" / "penstock-tiny"
FLIP_S = 2.0  # of an idle worker, to serving in its new role


class Operated:
    """A cluster, and what an operator can tell and ask its router."""

    def __init__(self, cluster: LocalCluster, checkpoint: Path) -> None:
        self.cluster = cluster
        self.checkpoint = checkpoint

    async def drain(
        self, worker: str, then: Any = None, limit_s: float = 30.0, *, force: bool = False
    ) -> pb.DrainResponse:
        request = pb.DrainRequest(worker_id=worker, then=then, limit_seconds=limit_s, force=force)
        return await self._ask("Drain", request)  # type: ignore[no-any-return]

    async def undrain(self, worker: str) -> None:
        await self._ask("Undrain", pb.UndrainRequest(worker_id=worker))

    async def workers(self) -> dict[str, pb.WorkerStatus]:
        where, secrets = self.cluster.address, self.cluster.secrets_file
        reply = await asyncio.to_thread(fetch_status, where, secrets)
        names = [each.member.worker.worker_id for each in reply.workers]
        assert len(set(names)) == len(names)
        return dict(zip(names, reply.workers, strict=True))

    async def until(self, worker: str, holds: Callable[[pb.WorkerStatus], bool]) -> float:
        """Returns after how many seconds it did."""
        began = time.monotonic()
        async with asyncio.timeout(60):
            while True:
                found = (await self.workers()).get(worker)
                if found is not None and holds(found):
                    return time.monotonic() - began
                await asyncio.sleep(0.05)

    async def flip(self, worker: str, to: Any, limit_s: float = 30.0) -> float:
        """Returns when it serves in its new role, and after how many seconds."""
        told = await self.drain(worker, to, limit_s)

        def is_flipped(status: pb.WorkerStatus) -> bool:
            is_new = status.member.worker.incarnation > told.incarnation
            return is_new and status.serving and status.member.role == to

        return await self.until(worker, is_flipped)

    async def _ask(self, method: str, request: Any) -> Any:
        where, secrets = self.cluster.address, self.cluster.secrets_file
        return await asyncio.to_thread(ask_cluster, method, request, where, secrets)


@asynccontextmanager
async def operated(tmp_path: Path, **plan: Any) -> AsyncIterator[Operated]:
    (tmp_path / "served").mkdir()
    checkpoint = write_checkpoint(tmp_path / "served")
    settings = {"num_prefill": 2, "num_decode": 2, "num_blocks": 512, "drain_s": 5.0, **plan}
    worker = {"engine": "echo", **settings.pop("worker", {})}
    described = ClusterPlan(checkpoint=checkpoint, worker=worker, **settings)
    async with LocalCluster(described) as cluster:
        yield Operated(cluster, checkpoint)


@pytest.mark.parametrize(
    ("transport", "num_rounds"),
    [
        ("shared_memory", 1),
        pytest.param("tcp", 1, marks=pytest.mark.prove),
        pytest.param("shared_memory", 4, marks=pytest.mark.prove),
    ],
)
async def test_workers_change_their_roles_under_load_without_their_checkpoint(
    tmp_path: Path, transport: str, num_rounds: int
) -> None:
    """One of either role, there and, in further rounds, back."""
    async with operated(tmp_path, transports=(transport,)) as there:
        before = await there.workers()
        pids = {name: child.pid for name, child in there.cluster.children.items()}
        there.checkpoint.rename(tmp_path / "away")
        streams = Streams([there.cluster.address])
        async with streams.running():
            for number in range(num_rounds):
                roles = (pb.ROLE_PREFILL, pb.ROLE_DECODE)[:: -1 if number % 2 else 1]
                for worker, role in zip(("decode-0", "prefill-0"), roles, strict=True):
                    await streams.in_the_middle()
                    await there.flip(worker, role, limit_s=3.0)
            await streams.each_again()
        assert (streams.lost, streams.wrong) == ([], [])
        after = await there.workers()
        assert [after["decode-0"].member.role, after["prefill-0"].member.role] == list(roles)
        assert there.cluster.num_restarts == 0
        assert pids == {name: child.pid for name, child in there.cluster.children.items()}
        past = {before[name].member.worker.incarnation for name in ("decode-0", "prefill-0")}
        lives = {status.member.worker.incarnation for status in after.values()}
        pools = {path.name for path in there.cluster.run_dir.glob(f"{PREFIX}*")}
        assert pools == {PREFIX + life for life in lives}
        assert not past & lives
        assert all(status.load.num_quarantined_blocks == 0 for status in after.values())
        assert num_rounds % 2 == 0 or _sends(after["decode-0"])


def _sends(status: pb.WorkerStatus) -> bool:
    sent = pb.PAIR_DIRECTION_SENT
    return any(pair.transfers for pair in status.load.pairs if pair.direction == sent)


@pytest.mark.alone
@pytest.mark.parametrize("has_redis", [False, True])
async def test_an_idle_worker_changes_its_role_within_two_seconds_and_leaves_no_record(
    tmp_path: Path, has_redis: bool
) -> None:
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(redis_server()) if has_redis else None
        url = redis.url if redis is not None else None
        there = await stack.enter_async_context(operated(tmp_path, store=url))
        first = (await there.workers())["decode-0"].member.worker
        before, address = first.incarnation, first.address
        roles = (pb.ROLE_PREFILL, pb.ROLE_DECODE, pb.ROLE_PREFILL)
        seconds = [await there.flip("decode-0", role) for role in roles]
        assert max(seconds) < FLIP_S, seconds
        # Else who supervises it finds nobody there.
        assert (await there.workers())["decode-0"].member.worker.address == address
        if url is not None:
            members = await members_in(url, there.cluster.secrets_file)
            roles_there = {member.worker.worker_id: member.role for member in members}
            assert len(roles_there) == len(members) == 4
            assert roles_there["decode-0"] is Role.PREFILL  # type: ignore[index]
            assert before not in {member.worker.incarnation for member in members}


async def members_in(url: str, secrets_file: Path) -> list[Member]:
    """For somebody who looks into the store for the first time."""
    redis = RedisStore(url, prefix=prefix_of(None))
    try:
        return await Membership(
            SealedStore(redis, load_secrets(secrets_file).cluster_token)
        ).members()
    finally:
        await redis.close()


@pytest.mark.prove
async def test_the_shipped_model_answers_the_same_before_and_after(tmp_path: Path) -> None:
    """A worker that has read its weights in one role computes with them in the other."""
    checkpoint = shutil.copytree(SHIPPED, tmp_path / "served")
    plan = ClusterPlan(checkpoint=checkpoint, num_decode=2, num_blocks=256, drain_s=5.0)
    ask = {"messages": [("user", "What does len do?")], "temperature": 0.0}
    async with LocalCluster(plan) as cluster, AsyncClient(cluster.address) as client:
        there = Operated(cluster, checkpoint)
        first = await client.generate(**ask).result()
        checkpoint.rename(tmp_path / "away")
        seconds = [
            await there.flip("decode-0", pb.ROLE_PREFILL),
            await there.flip("prefill-0", pb.ROLE_DECODE),
        ]
        assert max(seconds) < FLIP_S, seconds
        for _ in range(3):
            answer = await client.generate(**ask).result()
            assert answer.token_ids == first.token_ids
        await there.flip("decode-0", pb.ROLE_DECODE)
        assert (await client.generate(**ask).result()).token_ids == first.token_ids
        assert cluster.num_restarts == 0


@pytest.mark.prove
async def test_an_answer_that_outlasts_a_drain_goes_on_elsewhere(tmp_path: Path) -> None:
    """Half a second is less than the streams take. Afterwards it serves again."""
    async with operated(tmp_path, num_prefill=1) as there:
        streams = Streams([there.cluster.address])
        async with streams.running():
            await streams.in_the_middle()
            await there.drain("decode-0", limit_s=0.2)
            await there.until("decode-0", lambda status: not status.load.open_calls)
            await streams.each_again()
            shown = (await there.workers())["decode-0"]
            assert shown.load.draining
            assert not shown.serving
            assert shown.requests_in_flight == 0
            await there.undrain("decode-0")
            await there.until("decode-0", lambda status: status.requests_in_flight > 0)
            await streams.each_again()
        assert (streams.lost, streams.wrong) == ([], [])
        assert there.cluster.num_restarts == 0


@pytest.mark.prove
async def test_a_flipped_worker_that_dies_is_started_in_the_role_of_its_command(
    tmp_path: Path,
) -> None:
    """Though the record of its other role has yet to lapse."""
    async with operated(tmp_path) as there:
        await there.flip("decode-0", pb.ROLE_PREFILL)
        flipped = (await there.workers())["decode-0"].member
        os.kill(there.cluster.children["decode-0"].pid, signal.SIGKILL)

        def is_back(status: pb.WorkerStatus) -> bool:
            is_new = status.member.worker.incarnation > flipped.worker.incarnation
            return is_new and status.serving

        await there.until("decode-0", is_back)
        member = (await there.workers())["decode-0"].member
        assert (flipped.role, member.role) == (pb.ROLE_PREFILL, pb.ROLE_DECODE)
        assert list(member.past_lives) == []


async def test_the_last_decode_worker_drains_only_when_it_must(tmp_path: Path) -> None:
    async with operated(tmp_path, num_decode=1, num_prefill=1) as there:
        for then in (None, pb.ROLE_PREFILL):
            with pytest.raises(PenstockError, match="the last decode worker that serves"):
                await there.drain("decode-0", then)
        with pytest.raises(PenstockError, match="'decode-0' is a decode worker already"):
            await there.drain("decode-0", pb.ROLE_DECODE, force=True)
        with pytest.raises(PenstockError, match=r"no worker 'x' here; there is decode-0, prefill"):
            await there.drain("x")
        await there.drain("decode-0", force=True)
        await there.until("decode-0", lambda status: status.load.draining)
        await there.undrain("decode-0")
        await there.until("decode-0", lambda status: status.serving)
