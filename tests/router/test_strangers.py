"""Who can write to the store, or takes a port over, gets neither the token nor a prompt."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis.asyncio

from penstock.v1 import inference_pb2 as pb
from tests.redis_server import RedisServer, redis_server
from tests.router.cluster_of_fakes import Cluster
from tests.router.stranger import (
    PROMPT,
    Answer,
    Stranger,
    makes_one_up,
    says_nothing,
    says_the_same,
)

NUM_REQUESTS = 8
ANSWERS = [
    says_the_same,
    *(pytest.param(answer, marks=pytest.mark.prove) for answer in (says_nothing, makes_one_up)),
]
LOOKS_S = 1.5  # the router looks at the store twice a second


@pytest.fixture
async def shared() -> AsyncIterator[RedisServer]:
    async with redis_server() as server:
        yield server


@pytest.fixture
async def cluster(checkpoint: Path, tmp_path: Path, shared: RedisServer) -> AsyncIterator[Cluster]:
    async with Cluster(checkpoint, tmp_path, store=shared.url) as cluster:
        yield cluster


@pytest.fixture
async def intruder(shared: RedisServer) -> AsyncIterator["redis.asyncio.Redis"]:
    """The same Redis, written to by somebody else."""
    async with redis.asyncio.Redis.from_url(shared.url) as client:
        yield client


async def record_of(intruder: "redis.asyncio.Redis", name: str) -> tuple[bytes, bytes]:
    (key,) = [key async for key in intruder.scan_iter(f"*member/*{name}*")]
    value = await intruder.get(key)
    assert value is not None
    return key, value


async def serve_all(cluster: Cluster) -> None:
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=PROMPT))
    for _ in range(NUM_REQUESTS):
        assert (await cluster.generate(request)).is_complete


@pytest.mark.slow
@pytest.mark.parametrize("prove", ANSWERS)
async def test_a_record_copied_with_another_address_gets_no_token_and_no_prompt(
    cluster: Cluster, intruder: "redis.asyncio.Redis", prove: Answer
) -> None:
    async with cluster.worker("true") as d0, Stranger(prove=prove) as stranger:
        await cluster.serving(d0)
        key, value = await record_of(intruder, "true")
        assert len(d0.address) == len(stranger.address)
        forged = value.replace(d0.address.encode(), stranger.address.encode())
        await intruder.set(key.replace(b"true", b"evil"), forged.replace(b"true", b"evil"))
        async with asyncio.timeout(60):
            for _ in range(NUM_REQUESTS):
                await serve_all(cluster)
                await asyncio.sleep(LOOKS_S / NUM_REQUESTS)
        assert not stranger.knows_the_token
        assert not stranger.knows_the_prompt
        assert stranger.paths == []
        assert len(d0.requests) == NUM_REQUESTS**2


@pytest.mark.slow
@pytest.mark.parametrize("prove", ANSWERS)
async def test_whoever_takes_the_port_of_a_dead_worker_gets_no_token_and_no_prompt(
    cluster: Cluster, intruder: "redis.asyncio.Redis", prove: Answer
) -> None:
    """Its record is authentic, its address right; and it is kept from lapsing."""
    async with cluster.worker("d0") as d0, cluster.worker("d1") as d1:
        await cluster.serving(d0, d1)
        await serve_all(cluster)
        await d0.die()
        key, _ = await record_of(intruder, "d0")
        await intruder.persist(key)
        async with Stranger(d0.address, incarnation=d0.incarnation, prove=prove) as stranger:
            async with asyncio.timeout(60):
                await stranger.called.wait()
                for _ in range(NUM_REQUESTS):
                    await serve_all(cluster)
                    await asyncio.sleep(LOOKS_S / NUM_REQUESTS)
            assert not stranger.knows_the_token
            assert not stranger.knows_the_prompt
