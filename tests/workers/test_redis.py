"""Membership in Redis, as with several routers: and what losing it costs, which is nothing."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
import redis.asyncio

from tests.redis_server import redis_server
from tests.router.stranger import Stranger
from tests.workers.answers import expected, greedy, prompt_of
from tests.workers.local_cluster import LocalCluster


@pytest.mark.slow
async def test_two_routers_share_workers_that_register_in_redis(
    checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    async with redis_server() as server:
        settings = {"disaggregate": "always", "store": server.url}
        workers = {"decode": [{"router": server.url}], "prefill": [{"router": server.url}]}
        first = LocalCluster(checkpoint, tmp_path, **settings, **workers)
        other = LocalCluster(checkpoint, tmp_path / "other", **settings, decode=[], prefill=[])
        async with first, other:
            await other.until(lambda: other.router.is_serving)
            for number in range(4):
                prompt = prompt_of(number, 60)
                for cluster in (first, other):
                    answer = await cluster.generate(greedy(prompt, 8))
                    assert answer.token_ids == expected(prompt, 8)
                if number == 1:
                    os.kill(server.pid, signal.SIGKILL)


@pytest.mark.slow
async def test_a_prefill_worker_that_a_stranger_wrote_into_redis_is_never_met(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Neither by the router, nor by the decode worker, which reads the same records."""
    async with redis_server() as server, redis.asyncio.Redis.from_url(server.url) as intruder:
        settings = {"disaggregate": "always", "store": server.url}
        workers = {"decode": [{"router": server.url}], "prefill": [{"router": server.url}]}
        async with (
            LocalCluster(checkpoint, tmp_path, **settings, **workers) as cluster,
            Stranger() as stranger,
        ):
            (key,) = [key async for key in intruder.scan_iter("*member/prefill/*")]
            true = await intruder.get(key)
            address = cluster.prefill[0].address
            assert true is not None
            assert len(address) == len(stranger.address)
            forged = true.replace(address.encode(), stranger.address.encode())
            assert forged != true
            for number in range(8):
                # In the place of the true one, which writes its own again; and beside it.
                await intruder.set(key, forged)
                await intruder.set(
                    key.replace(b"prefill-0", b"prefill-1"),
                    forged.replace(b"prefill-0", b"prefill-1"),
                )
                prompt = prompt_of(number, 60)
                answer = await cluster.generate(greedy(prompt, 8))
                assert answer.token_ids == expected(prompt, 8)
                await asyncio.sleep(0.2)  # each process looks at the store meanwhile
            assert stranger.paths == []


@pytest.mark.slow
async def test_clusters_of_one_redis_are_kept_apart_by_their_names(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Also where both have the same secrets."""
    (tmp_path / "other").mkdir()
    async with redis_server() as server, redis.asyncio.Redis.from_url(server.url) as reader:
        worker = {"router": server.url, "cluster": "a"}
        first = LocalCluster(
            checkpoint, tmp_path, store=server.url, cluster="a", decode=[worker], prefill=[]
        )
        other = LocalCluster(
            checkpoint, tmp_path / "other", store=server.url, cluster="b", decode=[], prefill=[]
        )
        async with first, other:
            assert (await first.generate(greedy(prompt_of(1, 20), 4))).token_ids
            assert not other.router.is_serving
            assert [key async for key in reader.scan_iter("penstock:a:member/*")]
            assert not [key async for key in reader.scan_iter("penstock:b:member/*")]
