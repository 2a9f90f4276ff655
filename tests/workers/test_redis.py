"""Membership in Redis, as with several routers: and what losing it costs, which is nothing."""

import os
import signal
from pathlib import Path

import pytest

from tests.redis_server import redis_server
from tests.workers.local_cluster import LocalCluster
from tests.workers.test_answers import expected, greedy, prompt_of


@pytest.mark.slow
async def test_two_routers_share_workers_that_register_in_redis(
    checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    async with redis_server() as redis:
        settings = {"disaggregate": "always", "store": redis.url}
        workers = {"decode": [{"router": redis.url}], "prefill": [{"router": redis.url}]}
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
                    os.kill(redis.pid, signal.SIGKILL)
