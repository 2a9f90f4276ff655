"""All stores keep one contract: the one in memory, a real Redis, and either of them sealed."""

import asyncio
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import redis.asyncio

from cluster.errors import ConfigError, StoreUnavailable
from cluster.redis_store import RedisStore
from cluster.sealed_store import SealedStore
from cluster.store import MemoryStore, Store
from tests.redis_server import free_port, redis_server

Elapse = Callable[[float], Awaitable[None]]
_prefixes = itertools.count()


@pytest.fixture(params=["memory", "redis"])
async def bare_and_elapse(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Store, Elapse]]:
    """A store, and the way to let its time pass."""
    if request.param == "memory":
        now = [0.0]

        async def pass_virtual_time(seconds: float) -> None:
            now[0] += seconds

        yield MemoryStore(clock=lambda: now[0]), pass_virtual_time
        return
    async with redis_server() as server:
        store = RedisStore(server.url, prefix=f"test{next(_prefixes)}:", timeout_s=5)
        yield store, asyncio.sleep  # Redis has a clock of its own
        await store.close()


@pytest.fixture(params=["bare", "sealed"])
def store(request: pytest.FixtureRequest, bare_and_elapse: tuple[Store, Elapse]) -> Store:
    bare, _ = bare_and_elapse
    return bare if request.param == "bare" else SealedStore(bare, "token-of-the-tests-cluster")


@pytest.fixture
def elapse(bare_and_elapse: tuple[Store, Elapse]) -> Elapse:
    return bare_and_elapse[1]


async def test_what_was_put_is_there_until_deleted(store: Store):
    assert await store.get("a") is None
    await store.put("a", b"\x00\xff one")
    assert await store.get("a") == b"\x00\xff one"
    await store.put("a", b"")
    assert await store.get("a") == b""
    assert await store.compare_and_set("a", b"", None)
    assert not await store.compare_and_set("a", b"", None)
    assert await store.get("a") is None


async def test_a_value_with_a_time_to_live_lapses_unless_put_again(store: Store, elapse: Elapse):
    await store.put("short", b"1", ttl_s=0.05)
    await store.put("kept", b"1", ttl_s=0.05)
    await store.put("kept", b"2")
    await store.put("long", b"3", ttl_s=60)
    await elapse(0.1)
    assert await store.get("short") is None
    assert await store.scan("") == {"kept": b"2", "long": b"3"}


async def test_a_scan_returns_what_is_under_the_prefix_and_takes_it_literally(store: Store):
    for key in ("member/a", "member/b", "other/a", "m*", "m?[x]", "m?[x]y", "m\\^-"):
        await store.put(key, key.encode())
    assert await store.scan("member/") == {"member/a": b"member/a", "member/b": b"member/b"}
    assert await store.scan("m*") == {"m*": b"m*"}
    assert set(await store.scan("m?[x]")) == {"m?[x]", "m?[x]y"}
    assert set(await store.scan("m\\^-")) == {"m\\^-"}
    assert await store.scan("nothing") == {}


async def test_a_scan_returns_more_than_redis_gives_in_one_answer(store: Store):
    async with asyncio.TaskGroup() as tasks:
        for number in range(600):
            tasks.create_task(store.put(f"many/{number}", b"%d" % number))
    found = await store.scan("many/")
    assert found == {f"many/{number}": b"%d" % number for number in range(600)}


async def test_compare_and_set_changes_only_what_was_expected(store: Store):
    assert await store.compare_and_set("a", None, b"1")
    assert not await store.compare_and_set("a", None, b"2")
    assert not await store.compare_and_set("a", b"2", b"3")
    assert await store.get("a") == b"1"
    assert await store.compare_and_set("a", b"1", b"")
    assert not await store.compare_and_set("a", None, b"4")  # empty is not absent
    assert await store.compare_and_set("a", b"", None)
    assert await store.get("a") is None
    assert await store.compare_and_set("a", None, None)


async def test_compare_and_set_sets_the_time_to_live(store: Store, elapse: Elapse):
    await store.compare_and_set("a", None, b"1", ttl_s=0.05)
    await store.compare_and_set("b", None, b"1", ttl_s=0.05)
    await store.compare_and_set("b", b"1", b"1")
    await elapse(0.1)
    assert await store.scan("") == {"b": b"1"}


async def test_of_many_who_compare_and_set_at_once_one_wins(store: Store):
    async with asyncio.TaskGroup() as tasks:
        attempts = [
            tasks.create_task(store.compare_and_set("a", None, b"%d" % number))
            for number in range(50)
        ]
    winners = [number for number, attempt in enumerate(attempts) if attempt.result()]
    assert len(winners) == 1
    assert await store.get("a") == b"%d" % winners[0]


VERBS: list[Callable[[Store], Awaitable[Any]]] = [
    lambda store: store.put("a", b"1"),
    lambda store: store.get("a"),
    lambda store: store.scan("a"),
    lambda store: store.compare_and_set("a", None, b"1"),
    lambda store: store.take("a", 1),
]


async def test_so_much_is_taken_within_a_window_and_no_more(store: Store, elapse: Elapse):
    assert await store.take("a", 3, most=4) == 0.0
    assert 0.0 < await store.take("a", 2, most=4) <= 120.0
    assert await store.take("a", 1, most=4) == 0.0, "what was refused is not counted"
    assert await store.take("b", 4, most=4) == 0.0
    assert await store.take("a", 10) == 0.0, "whatever there is"
    assert await store.take("a", 1, most=4) > 0.0
    window_s = 0.3
    assert await store.take("c", 9, window_s=window_s) == 0.0
    await elapse(2.1 * window_s)
    assert await store.take("c", 4, most=4, window_s=window_s) == 0.0
    await elapse(await store.take("c", 2, most=4, window_s=window_s) + 0.01)
    assert await store.take("c", 2, most=4, window_s=window_s) == 0.0


async def test_of_many_who_take_at_once_as_many_get_it_as_there_is(store: Store):
    async with asyncio.TaskGroup() as tasks:
        takes = [tasks.create_task(store.take("a", 1, most=20)) for _ in range(50)]
    assert sum(take.result() == 0.0 for take in takes) == 20


async def test_what_is_no_count_in_redis_is_said_to_be_unavailable():
    async with redis_server() as server:
        store = RedisStore(server.url, prefix="p:", timeout_s=5)
        admin = redis.asyncio.Redis.from_url(server.url)
        await admin.set("p:count/a", b"no count")
        with pytest.raises(StoreUnavailable):
            await store.take("a", 1, most=2)
        assert await store.scan("") == {"count/a": b"no count"}
        await admin.aclose()
        await store.close()


async def test_a_redis_that_wants_a_password_is_opened_by_it():
    async with redis_server() as server:
        opened = RedisStore(server.url, password="hunter2", timeout_s=5)
        admin = redis.asyncio.Redis.from_url(server.url)
        await admin.config_set("requirepass", "hunter2")
        await admin.aclose()
        await opened.put("a", b"1")
        assert await opened.get("a") == b"1"
        await opened.close()
        stranger = RedisStore(server.url, timeout_s=5)
        with pytest.raises(StoreUnavailable) as caught:
            await stranger.get("a")
        assert "hunter2" not in caught.value.message
        await stranger.close()


async def test_a_redis_that_is_away_is_said_to_be_unavailable_by_each_verb():
    store = RedisStore(f"redis://127.0.0.1:{free_port()}/0")
    for verb in VERBS:
        with pytest.raises(StoreUnavailable, match="did not answer"):
            await verb(store)
    await store.close()


async def test_a_redis_that_hangs_costs_no_more_than_the_time_limit():
    async with redis_server() as server:
        store = RedisStore(server.url, timeout_s=0.03)
        await store.put("before", b"1")
        os.kill(server.pid, signal.SIGSTOP)
        try:
            for verb in VERBS:
                async with asyncio.timeout(1):
                    with pytest.raises(StoreUnavailable):
                        await verb(store)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        patient = RedisStore(server.url, timeout_s=5)
        await patient.scan("")  # it answers again
        assert await store.get("before") == b"1"  # and no late answer is taken for this one
        await patient.close()
        await store.close()


@pytest.mark.slow
@pytest.mark.prove
async def test_who_was_away_finds_what_redis_has_answered():
    async with redis_server() as server:
        store = RedisStore(server.url, timeout_s=0.5)
        await store.put("a", b"1")
        for verb in VERBS:
            os.kill(server.pid, signal.SIGSTOP)
            asking = asyncio.ensure_future(verb(store))
            await asyncio.sleep(0.05)  # it is asked
            os.kill(server.pid, signal.SIGCONT)
            time.sleep(0.8)  # noqa: ASYNC251 - as SIGSTOP does to us
            await asking
        await store.close()


async def test_a_redis_that_comes_back_is_used_again():
    port = free_port()
    store = RedisStore(f"redis://127.0.0.1:{port}/0", timeout_s=5)
    async with redis_server(port):
        await store.put("a", b"1")
    with pytest.raises(StoreUnavailable):
        await store.get("a")
    async with redis_server(port):
        assert await store.get("a") is None
        await store.put("a", b"2")
        assert await store.get("a") == b"2"
    await store.close()


def test_what_is_no_redis_url_is_refused_with_the_form():
    with pytest.raises(ConfigError, match="redis://HOST:PORT/DB"):
        RedisStore("localhost:6379")
