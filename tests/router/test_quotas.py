"""What a key may take: refused at the edge and not before, together over routers that share a
Redis, and kept by nobody while that is away."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import openai
import pytest

from cluster.errors import InvalidRequest, QuotaExceeded
from cluster.store import MemoryStore
from penstock.aio import AsyncClient
from penstock.errors import QuotaError
from router.callers.key_file import ApiKey, new_key
from router.callers.quotas import Quotas
from tests.redis_server import free_port, redis_server
from tests.router.cluster_of_fakes import MODEL, Cluster, failure
from tests.router.http_clients import QUESTION, asked, openai_client
from tests.router.keyed import api_key, entry, shown, write_keys

CHAT = "/v1/chat/completions"
KEY, OTHER = new_key(), new_key()


@dataclass
class Asking:
    """As much of a caller as quotas want to know."""

    key: ApiKey
    tokens_emitted: int = 0


class Hours:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Hours:
    return Hours()


@pytest.fixture
def quotas(clock: Hours) -> Quotas:
    return Quotas(MemoryStore(clock=clock), clock)


async def test_as_many_requests_a_minute_as_were_said_and_more_when_it_told(
    quotas: Quotas, clock: Hours
) -> None:
    key, free = api_key(max_requests_per_minute=3), api_key("free")
    for _ in range(3):
        await quotas.take_request(key)
    with pytest.raises(QuotaExceeded, match="3 requests in a minute") as caught:
        await quotas.take_request(key)
    for _ in range(100):
        await quotas.take_request(free)
        await quotas.take_prompt(free, 1 << 30)
    clock.now += caught.value.retry_after_s - 0.1
    with pytest.raises(QuotaExceeded):
        await quotas.take_request(key)
    clock.now += 0.2
    await quotas.take_request(key)


async def test_no_minute_has_more_than_a_few_per_cent_too_many(
    quotas: Quotas, clock: Hours
) -> None:
    key, let_in = api_key(max_requests_per_minute=60), []
    while clock.now < 600:
        try:
            await quotas.take_request(key)
            let_in.append(clock.now)
        except QuotaExceeded:
            pass
        clock.now += 0.25
    for start in let_in:
        assert sum(start <= at < start + 60 for at in let_in) <= 63
    assert len(let_in) >= 570, "nor are callers cheated"


async def test_tokens_of_prompts_count_at_once_and_of_answers_at_their_end(
    quotas: Quotas, clock: Hours
) -> None:
    key = api_key(max_tokens_per_minute=100)
    asking: Any = Asking(key)
    with quotas.in_flight(key, asking):
        await quotas.take_prompt(key, 60)
        asking.tokens_emitted = 30
    await quotas.settle()
    await quotas.take_prompt(key, 10)
    with pytest.raises(QuotaExceeded, match="100 tokens in a minute"):
        await quotas.take_prompt(key, 1)
    with pytest.raises(InvalidRequest, match="101 tokens, and this API key may have 100"):
        await quotas.take_prompt(key, 101)
    clock.now += 120
    await quotas.take_prompt(key, 100)


async def test_what_a_failed_or_cancelled_answer_had_counts_as_well(quotas: Quotas) -> None:
    key = api_key(max_tokens_per_minute=100)
    asking: Any = Asking(key)
    asking.tokens_emitted = 99
    with pytest.raises(asyncio.CancelledError), quotas.in_flight(key, asking):
        raise asyncio.CancelledError
    await quotas.settle()
    await quotas.take_prompt(key, 1)
    with pytest.raises(QuotaExceeded):
        await quotas.take_prompt(key, 1)


async def test_an_answer_may_take_more_than_was_left_and_the_next_waits_for_it(
    quotas: Quotas, clock: Hours
) -> None:
    key = api_key(max_tokens_per_minute=100)
    asking: Any = Asking(key)
    with quotas.in_flight(key, asking):
        await quotas.take_prompt(key, 100)
        asking.tokens_emitted = 400
    await quotas.settle()
    with pytest.raises(QuotaExceeded) as caught:
        await quotas.take_prompt(key, 50)
    assert caught.value.retry_after_s == pytest.approx(60 + 60 * 0.9)
    clock.now += caught.value.retry_after_s + 0.1
    await quotas.take_prompt(key, 50)


def test_as_many_at_once_as_were_said(quotas: Quotas) -> None:
    key, other = api_key(max_in_flight=2), api_key("other", max_in_flight=1)
    asking: Any = Asking(key)
    with quotas.in_flight(key, asking), quotas.in_flight(key, asking):
        with pytest.raises(QuotaExceeded, match="2 requests in flight"):
            quotas.in_flight(key, asking).__enter__()
        with quotas.in_flight(other, asking):
            pass
    with quotas.in_flight(key, asking):
        pass


# At the doors


@pytest.fixture
async def limited(checkpoint: Path, tmp_path: Path) -> AsyncIterator[Cluster]:
    keys = write_keys(
        tmp_path / "keys.json",
        entry(KEY, max_requests_per_minute=2, max_in_flight=1),
        entry(OTHER, "other", max_tokens_per_minute=20),
    )
    async with (
        Cluster(checkpoint, tmp_path, drain_s=5.0, keys_file=keys) as cluster,
        cluster.worker("d0", text="a") as worker,
    ):
        await cluster.serving(worker)
        yield cluster


async def test_a_quota_is_a_429_to_openais_client_and_resource_exhausted_to_grpcs(
    limited: Cluster,
) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "max_tokens": 1}
    async with openai_client(limited, api_key=KEY) as client:
        await client.chat.completions.create(**ask)
        await limited.generate(text="x", metadata=shown(KEY))
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(**ask)
    error = caught.value
    assert (error.status_code, error.code) == (429, "rate_limit_exceeded")
    headers = error.response.headers
    assert 1 <= int(headers["retry-after"]) <= 91
    assert int(headers["retry-after-ms"]) <= 1000 * int(headers["retry-after"])
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await limited.generate(text="x", metadata=shown(KEY))
    told = failure(refused.value)
    assert (told.code, told.reason) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "RATE_LIMIT_EXCEEDED",
    )
    assert told.retry_after_s
    assert 0 < told.retry_after_s <= 91
    async with AsyncClient(limited.address, api_key=KEY) as ours:
        with pytest.raises(QuotaError, match="2 requests in a minute") as exceeded:
            await ours.generate("x")
        assert exceeded.value.retry_after
        await ours.models()  # which costs nothing
    await limited.generate(text="x", metadata=shown(OTHER))


async def test_requests_of_one_body_are_as_many(limited: Cluster) -> None:
    body = {"prompt": ["a", "b", "c"], "max_tokens": 1}
    reply = await asked(limited, "POST", "/v1/completions", body, authorization=f"Bearer {KEY}")
    assert (reply.status, reply.error["code"]) == (429, "rate_limit_exceeded")


async def test_tokens_that_were_had_refuse_the_next_prompt(limited: Cluster) -> None:
    answer = await limited.generate(text="x" * 4, stop={"max_tokens": 10}, metadata=shown(OTHER))
    num = len(answer.token_ids)
    await limited.until(lambda: not limited.router.quotas._owed)
    ids = [1] * (20 - 4 - num)
    await limited.generate(token_ids={"ids": ids}, stop={"max_tokens": 1}, metadata=shown(OTHER))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await limited.generate(token_ids={"ids": [1]}, metadata=shown(OTHER))
    assert failure(refused.value).reason == "RATE_LIMIT_EXCEEDED"
    reply = await asked(
        limited, "POST", "/v1/completions", {"prompt": "x" * 21}, authorization=f"Bearer {OTHER}"
    )
    assert (reply.status, reply.error["param"]) == (400, "prompt")


async def test_the_bound_at_once_is_given_back_by_who_leaves(
    checkpoint: Path, tmp_path: Path
) -> None:
    keys = write_keys(tmp_path / "keys.json", entry(KEY, max_in_flight=1))
    async with (
        Cluster(checkpoint, tmp_path, keys_file=keys) as cluster,
        cluster.worker("d0", text="a", delay_s=30) as worker,
    ):
        await cluster.serving(worker)
        first = asyncio.create_task(cluster.generate(text="x", metadata=shown(KEY)))
        await worker.served.wait()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await cluster.generate(text="x", metadata=shown(KEY))
        assert "1 requests in flight" in failure(refused.value).message
        first.cancel()
        await cluster.until(lambda: cluster.router.admission.num_in_flight == 0)
        worker.delay_s = 0.0
        await cluster.generate(text="x", metadata=shown(KEY))


# Over Redis


async def tried(cluster: Cluster, num: int) -> int:
    """How many of so many requests were let in."""
    let_in = 0
    for _ in range(num):
        try:
            await cluster.generate(text="x", stop={"max_tokens": 1}, metadata=shown(KEY))
            let_in += 1
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
    return let_in


@pytest.mark.slow
async def test_routers_that_share_a_redis_share_what_a_key_may_have(
    checkpoint: Path, tmp_path: Path
) -> None:
    keys = write_keys(tmp_path / "keys.json", entry(KEY, max_requests_per_minute=10))
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(redis_server())
        routers = [
            await stack.enter_async_context(
                Cluster(checkpoint, tmp_path, keys_file=keys, store=redis.url)
            )
            for _ in range(2)
        ]
        worker = await stack.enter_async_context(routers[0].worker("d0", text="a"))
        for router in routers:
            await router.serving(worker)
        assert sum(await asyncio.gather(*(tried(router, 8) for router in routers))) == 10
        for router in routers:
            assert await tried(router, 1) == 0
            assert router.router.quotas.num_unchecked == 0


@pytest.mark.slow
async def test_while_redis_is_away_everybody_is_let_in_and_counted_and_nobody_waits(
    checkpoint: Path, tmp_path: Path
) -> None:
    keys = write_keys(
        tmp_path / "keys.json", entry(KEY, max_requests_per_minute=1, max_tokens_per_minute=100)
    )
    port = free_port()
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(redis_server(port))
        cluster = await stack.enter_async_context(
            Cluster(checkpoint, tmp_path, keys_file=keys, store=redis.url)
        )
        worker = await stack.enter_async_context(cluster.worker("d0", text="a"))
        await cluster.serving(worker)
        quotas = cluster.router.quotas
        assert await tried(cluster, 3) == 1
        os.kill(redis.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert await tried(cluster, 20) == 20
            assert time.monotonic() - began < 10.0, "not half a second each, three times"
            assert quotas.num_unchecked >= 20
        finally:
            os.kill(redis.pid, signal.SIGCONT)

        async def is_kept() -> bool:
            return await tried(cluster, 1) == 0

        async with asyncio.timeout(20):
            while not await is_kept():  # noqa: ASYNC110
                await asyncio.sleep(0.1)
