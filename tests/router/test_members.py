"""Workers come, report, restart, leave and die; the router follows them."""

import asyncio
import contextlib
import re
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest

from cluster.block_hash import grain_hashes, hash_key
from cluster.channel import open_channel
from cluster.errors import FingerprintMismatch, StaleIncarnation, Unauthenticated
from cluster.membership import Membership
from cluster.types import GrainHash, Member, Role, WorkerId
from cluster.wire_version import WIRE_VERSION
from cluster.worker_codec import member_to_pb
from penstock.v1 import inference_pb2 as pb
from penstock.v1 import worker_pb2
from tests.redis_server import redis_server
from tests.router.cluster_of_fakes import Cluster, failure
from tests.router.fake_worker import TOKEN, Faults
from tests.router.pool_samples import matched
from worker.registrar import StoreRegistrar

CLUSTER = "penstock.v1.Cluster"
PROMPT = list(range(64))
THE_ROUTER = "the router and it differ in"


def grains(cluster: Cluster, ids: list[int]) -> list[GrainHash]:
    key = hash_key(
        bytes.fromhex("00112233445566778899aabb"),
        tenant="default",
        cache_scope="",
        model_digest=cluster.fingerprint.model_digest,
    )
    return grain_hashes(key, ids, cluster.fingerprint.hash_grain)


async def register(cluster: Cluster, member: Member, token: str | None = TOKEN) -> None:
    async with open_channel(cluster.address, token) as channel:
        await channel.unary(CLUSTER, "Register", member_to_pb(member, ttl_s=3), timeout_s=5)


async def status(cluster: Cluster) -> worker_pb2.StatusResponse:
    async with open_channel(cluster.address, TOKEN) as channel:
        return await channel.unary(CLUSTER, "Status", worker_pb2.StatusRequest(), timeout_s=5)


async def test_a_prompt_goes_where_its_prefix_is(cluster: Cluster) -> None:
    async with cluster.worker("d0") as d0, cluster.worker("d1") as d1:
        await cluster.serving(d0, d1)
        d1.stores(*grains(cluster, PROMPT))
        await cluster.until(lambda: cluster.router.index.num_grains == 4)
        request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=PROMPT))
        for _ in range(4):
            await cluster.generate(request)
        assert (len(d0.requests), len(d1.requests)) == (0, 4)
        hits = cluster.router.placer.books.counters.hits
        num_predicted = hits.num_predicted
        assert num_predicted > 0
        request.cache_scope = "another"  # the same tokens, other hashes
        await cluster.generate(request)
        assert hits.num_predicted == num_predicted


async def test_a_worker_with_a_past_is_followed_from_a_snapshot(cluster: Cluster) -> None:
    worker = cluster.worker("d0")
    worker.stores(*grains(cluster, PROMPT))
    async with worker:
        await cluster.serving(worker)
        await cluster.until(lambda: cluster.router.index.num_grains_of(WorkerId("d0")) == 4)
        assert matched(cluster.router.index, grains(cluster, PROMPT)) == {"d0": 4}


@pytest.mark.parametrize("field", ["tokenizer_digest", "model_digest", "hash_grain"])
async def test_a_worker_that_does_not_fit_the_router_is_refused_with_the_difference(
    cluster: Cluster, field: str
) -> None:
    other = replace(cluster.fingerprint, **{field: 7 if field == "hash_grain" else "other"})
    with pytest.raises(FingerprintMismatch, match=f"{field}: .* and (other|7)"):
        await register(cluster, cluster.worker("d0", fingerprint=other).member)
    assert (await status(cluster)).workers == []


@pytest.mark.parametrize(
    ("version", "remedy"),
    [
        (WIRE_VERSION + 1, "wire_version: 2 or 3 and 4 (upgrade the router first)"),
        (WIRE_VERSION - 2, "wire_version: 2 or 3 and 1 (upgrade the worker)"),
    ],
)
async def test_a_worker_whose_wire_version_the_router_does_not_speak_is_refused(
    cluster: Cluster, version: int, remedy: str
) -> None:
    other = replace(cluster.fingerprint, wire_version=version)
    with pytest.raises(
        FingerprintMismatch, match=re.escape(f"'d0' cannot join: {THE_ROUTER} {remedy}")
    ):
        await register(cluster, cluster.worker("d0", fingerprint=other).member)
    assert (await status(cluster)).workers == []


async def test_a_router_speaks_to_workers_of_the_wire_version_before(cluster: Cluster) -> None:
    older = replace(cluster.fingerprint, wire_version=WIRE_VERSION - 1)
    async with cluster.worker("d0", fingerprint=older) as d0, cluster.worker("d1") as d1:
        await cluster.serving(d0, d1)
        for _ in range(6):
            await cluster.generate(text="hello")
        assert d0.requests
        assert d1.requests


async def test_a_worker_that_does_not_fit_the_others_is_refused_too(cluster: Cluster) -> None:
    layout = replace(cluster.fingerprint.layout, num_kv_heads=8)
    async with cluster.worker("d0") as worker:
        await cluster.serving(worker)
        misfit = cluster.worker("p0", fingerprint=replace(cluster.fingerprint, layout=layout))
        with pytest.raises(FingerprintMismatch, match="num_kv_heads: 8 and 2"):
            await register(cluster, misfit.member)


async def test_the_cluster_service_needs_the_token(cluster: Cluster) -> None:
    for token in (None, "guessed"):
        with pytest.raises(Unauthenticated):
            await register(cluster, cluster.worker("d0").member, token)


async def test_status_says_who_serves_and_who_does_not(cluster: Cluster) -> None:
    async with cluster.worker("d0") as d0, cluster.worker("p0", Role.PREFILL) as p0:
        await cluster.serving(d0, p0)
        d0.stores(*grains(cluster, PROMPT))
        d0.faults = Faults(stall_after=1)
        call = cluster.inference.Generate(pb.GenerateRequest(text="hello"))
        await call.read()
        p0.report(is_serving=False, step_age_s=9.0)
        await cluster.until(lambda: len(cluster.router.pool.refusals(0)) > 0)
        said = await status(cluster)
        workers = {worker.member.worker.worker_id: worker for worker in said.workers}
        assert workers["d0"].serving
        assert workers["d0"].cached_grains == 4
        assert workers["d0"].requests_in_flight == 1
        assert not workers["p0"].serving
        assert "9.0 s" in workers["p0"].reason
        assert said.requests_in_flight == 1
        assert (said.index_grains, said.index_bytes > 0) == (4, True)
        call.cancel()


async def test_status_says_what_was_relayed_and_how_good_the_index_was(cluster: Cluster) -> None:
    async with cluster.worker("d0") as d0:
        await cluster.serving(d0)
        d0.stores(*grains(cluster, PROMPT))
        await cluster.until(lambda: cluster.router.index.num_grains == 4)
        await cluster.generate(pb.GenerateRequest(token_ids=pb.TokenIds(ids=PROMPT)))
        d0.drop_events = 1
        d0.stores(*grains(cluster, PROMPT[1:]))  # nobody hears of these
        await cluster.until(lambda: d0.drop_events == 0)
        d0.stores(*grains(cluster, PROMPT[2:]))
        await cluster.until(lambda: cluster.router.fleet.num_gaps(WorkerId("d0")) == 1)
        said = await status(cluster)
        assert said.workers[0].watch_gaps == 1
        assert 0 <= said.workers[0].index_age_seconds < 5
        assert (said.relay.placed, said.relay.moved) == (1, 0)
        assert said.relay.tokens == len(PROMPT)
        assert said.relay.predicted_hit_tokens > 0
        assert said.relay.actual_hit_tokens == 0, "a fake worker caches nothing"
        assert said.workers[0].predicted_hit_tokens == said.relay.predicted_hit_tokens
        assert said.workers[0].actual_hit_tokens == 0


@pytest.mark.slow
async def test_a_new_life_replaces_the_old_one_at_once(cluster: Cluster) -> None:
    async with cluster.worker("d0", faults=Faults(stall_after=0)) as old:
        await cluster.serving(old)
        old.stores(*grains(cluster, PROMPT))
        await cluster.until(lambda: cluster.router.index.num_grains == 4)
        waiting = asyncio.create_task(cluster.generate(text="hello"))
        await old.served.wait()
        async with cluster.worker("d1") as other:
            await cluster.serving(other)
            async with cluster.worker("d0") as new:
                answer = await waiting  # the old life is known to be over; nothing had been sent
                assert answer.messages[0].accepted.decode_worker == "d1"
                await cluster.serving(new)
                address = cluster.router.pool.address(WorkerId("d0"))
                assert address is not None
                assert address.incarnation == new.incarnation
                assert matched(cluster.router.index, grains(cluster, PROMPT)) == {}
                with pytest.raises(StaleIncarnation):
                    await register(cluster, old.member)


@pytest.mark.slow
async def test_a_worker_that_says_goodbye_and_stops_is_forgotten(cluster: Cluster) -> None:
    async with cluster.worker("d0") as worker:
        await cluster.serving(worker)
        worker.stores(*grains(cluster, PROMPT))
        await cluster.until(lambda: cluster.router.index.num_grains == 4)
        worker.stop_heartbeat()
        await worker.heartbeat.leave()
        await worker.die()
        await cluster.until(lambda: cluster.router.pool.address(WorkerId("d0")) is None)
        assert cluster.router.index.num_grains == 0


@pytest.mark.slow
async def test_a_worker_whose_record_lapsed_serves_while_it_reports(cluster: Cluster) -> None:
    """As when the store is lost: workers are the truth about themselves."""
    async with cluster.worker("d0") as worker:
        await cluster.serving(worker)
        worker.stores(*grains(cluster, PROMPT))
        await cluster.until(lambda: cluster.router.index.num_grains == 4)
        worker.stop_heartbeat()
        await worker.heartbeat.leave()
        for _ in range(3):  # looks at the store
            cluster.router.fleet.refresh()
            assert (await cluster.generate(text="x")).is_complete
        worker.freeze()
        await cluster.until(lambda: cluster.router.pool.address(WorkerId("d0")) is None)


async def test_a_broken_watch_is_resumed_without_a_snapshot(cluster: Cluster) -> None:
    async with cluster.worker("d0") as worker:
        await cluster.serving(worker)
        worker.stores(*grains(cluster, PROMPT)[:2])
        await cluster.until(lambda: cluster.router.index.num_grains == 2)
        worker.break_watch()
        worker.stores(*grains(cluster, PROMPT)[2:])
        await cluster.until(lambda: cluster.router.index.num_grains == 4)
        assert [bool(request.incarnation) for request in worker.watches] == [False, True]
        assert matched(cluster.router.index, grains(cluster, PROMPT)) == {"d0": 4}


async def test_a_lost_event_is_noticed_and_answered_with_a_snapshot(cluster: Cluster) -> None:
    async with cluster.worker("d0") as worker:
        await cluster.serving(worker)
        worker.drop_events = 1
        worker.stores(*grains(cluster, PROMPT)[:2])
        await cluster.until(lambda: worker.drop_events == 0)
        worker.stores(*grains(cluster, PROMPT)[2:])
        await cluster.until(lambda: cluster.router.index.num_grains == 4)
        assert matched(cluster.router.index, grains(cluster, PROMPT)) == {"d0": 4}
        assert [bool(request.incarnation) for request in worker.watches] == [False, False]


async def test_a_frozen_worker_that_speaks_again_serves_again(cluster: Cluster) -> None:
    async with cluster.worker("d0") as worker:
        await cluster.serving(worker)
        worker.break_watch(refuse=True)
        await cluster.until(lambda: not cluster.router.is_serving)
        worker.refuses_watch = False
        await cluster.serving(worker)


@pytest.mark.slow
async def test_workers_that_registered_in_redis_are_found_there(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with redis_server() as redis, Cluster(checkpoint, tmp_path, store=redis.url) as cluster:
        worker = cluster.worker("d0")
        misfit = cluster.worker(
            "d1", fingerprint=replace(cluster.fingerprint, tokenizer_digest="other")
        )
        registrar = StoreRegistrar(Membership(cluster.router.store))
        async with worker.without_heartbeat():
            await registrar.register(worker.member, ttl_s=30)
            await cluster.serving(worker)
            assert (await cluster.generate(text="x")).is_complete
        await registrar.deregister(worker.member.worker.worker_id, worker.incarnation)
        await registrar.register(misfit.member, ttl_s=30)
        await cluster.until(lambda: cluster.router.pool.address(WorkerId("d0")) is None)
        assert cluster.router.pool.address(WorkerId("d1")) is None
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cluster.generate(text="x")
        assert failure(caught.value).reason == "NO_WORKER"


@pytest.mark.slow
async def test_losing_redis_loses_no_request(checkpoint: Path, tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with redis_server() as redis:
            cluster = await stack.enter_async_context(
                Cluster(checkpoint, tmp_path, store=redis.url)
            )
            worker = await stack.enter_async_context(cluster.worker("d0"))
            await cluster.serving(worker)
            async with asyncio.timeout(10):
                while await cluster.health() != 1:  # noqa: ASYNC110 - from outside
                    await asyncio.sleep(0.02)
        await cluster.until(lambda: cluster.router.fleet.is_store_away)
        assert all([(await cluster.generate(text="x")).is_complete for _ in range(5)])
        assert await cluster.health() == 1
