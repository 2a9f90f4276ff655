"""Two routers before the same workers find as much cached as one does: each is told by the
workers what the other has placed."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.v1 import inference_pb2 as pb
from tests.redis_server import redis_server
from tests.router.checkpoint import VOCAB_SIZE
from tests.router.cluster_of_fakes import HASH_SECRET, Cluster
from tests.router.fake_worker import FakeWorker, Faults
from tests.router.sessions import key_of

NUM_WORKERS = 4
TURN_TOKENS = 64
THINK_S = 0.02  # mean, between an answer and its session's next turn


@asynccontextmanager
async def running(
    checkpoint: Path, directory: Path, num_routers: int, cache_grains: int
) -> AsyncIterator[tuple[list[Cluster], list[FakeWorker]]]:
    """Routers that share a store, and workers that each of them sends requests to."""
    async with contextlib.AsyncExitStack() as stack:
        redis = await stack.enter_async_context(redis_server())
        routers = [
            await stack.enter_async_context(Cluster(checkpoint, directory, store=redis.url))
            for _ in range(num_routers)
        ]
        settings: dict[str, Any] = {
            "hash_key": key_of(HASH_SECRET, routers[0].fingerprint),
            "cache_grains": cache_grains,
        }
        workers: list[FakeWorker] = [
            await stack.enter_async_context(routers[0].worker(f"d{number}", **settings))
            for number in range(NUM_WORKERS)
        ]
        for router in routers:
            await router.serving(*workers)
        yield routers, workers


async def hit_share(
    routers: Sequence[Cluster], num_sessions: int, num_turns: int, num_at_once: int
) -> float:
    """Of sessions that begin alike and grow with each turn; the turns go to the routers in turn."""
    numbers = random.Random(5)
    system = _ids(numbers, 2 * TURN_TOKENS)
    places = asyncio.Semaphore(num_at_once)
    num_cached = num_tokens = 0

    async def session(number: int) -> None:
        nonlocal num_cached, num_tokens
        drawn = random.Random(number)
        prompt = list(system)
        async with places:
            for turn in range(num_turns):
                prompt += _ids(drawn, TURN_TOKENS)
                request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt))
                request.stop.max_tokens = 1
                answer = await routers[turn % len(routers)].generate(request)
                num_cached += answer.messages[0].accepted.cached_tokens
                num_tokens += len(prompt)
                await asyncio.sleep(drawn.expovariate(1 / THINK_S))

    await asyncio.gather(*map(session, range(num_sessions)))
    return num_cached / num_tokens


async def compared(checkpoint: Path, tmp_path: Path, num_sessions: int) -> None:
    # Room for a third of what is asked, and for several times what is asked at once.
    cache_grains = num_sessions * 20 // NUM_WORKERS // 3
    shares = []
    for num_routers in (1, 2):
        async with running(checkpoint, tmp_path, num_routers, cache_grains) as (routers, _):
            shares.append(await hit_share(routers, num_sessions, 5, 8))
    one, two = shares
    print(f"hit share {one:.4f} by one router, {two:.4f} by two")
    assert one > 0.6
    assert two >= 0.98 * one


@pytest.mark.slow
async def test_what_one_router_places_the_other_reads_in_the_next_report(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with running(checkpoint, tmp_path, 2, 1000) as ((one, other), workers):
        for worker in workers:
            worker.faults, worker.reports_requests = Faults(stall_after=1), True
        calls = [one.inference.Generate(pb.GenerateRequest(text="x")) for _ in range(NUM_WORKERS)]
        await asyncio.gather(*(call.read() for call in calls))

        def knows_all() -> bool:
            decode = other.router.pool.snapshot(other.router.clock()).decode
            return sum(load.num_running for load in decode) == len(calls)

        await other.until(knows_all)
        assert other.router.pool.num_in_flight == 0, "it placed none of them itself"
        for call in calls:
            call.cancel()


@pytest.mark.alone
@pytest.mark.slow
async def test_two_routers_lose_hardly_any_hits(checkpoint: Path, tmp_path: Path) -> None:
    await compared(checkpoint, tmp_path, 60)


@pytest.mark.prove
async def test_two_routers_lose_hardly_any_hits_of_many_sessions(
    checkpoint: Path, tmp_path: Path
) -> None:
    await compared(checkpoint, tmp_path, 1000)


def _ids(numbers: random.Random, num: int) -> list[int]:
    return [numbers.randrange(VOCAB_SIZE - 1) for _ in range(num)]
