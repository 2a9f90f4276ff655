"""What a store holds counts only if we wrote it, there, and nothing newer is known."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.mac import MAC_BYTES
from cluster.membership import Membership
from cluster.redis_store import RedisStore
from cluster.sealed_store import MAX_VALUE_BYTES, SealedStore
from cluster.store import MemoryStore, Store
from cluster.types import Incarnation, Member, WorkerId
from tests.cluster.cluster_samples import member
from tests.redis_server import redis_server

TOKEN = "token-of-one-cluster"
D0 = WorkerId("d0")


@pytest.fixture(params=["memory", "redis"])
async def bare(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """The store as somebody else sees it who can write there."""
    if request.param == "memory":
        yield MemoryStore()
        return
    async with redis_server() as server:
        redis = RedisStore(server.url, timeout_s=5)
        yield redis
        await redis.close()


@pytest.fixture
def ours(bare: Store) -> SealedStore:
    return SealedStore(bare, TOKEN)


async def only(bare: Store, prefix: str = "") -> tuple[str, bytes]:
    ((key, value),) = (await bare.scan(prefix)).items()
    return key, value


async def test_what_was_written_is_read_by_whoever_has_the_token(bare: Store, ours: SealedStore):
    await ours.put("a", b"1")
    other = SealedStore(bare, TOKEN)
    assert await other.get("a") == b"1"
    assert await other.scan("a") == {"a": b"1"}
    assert await other.compare_and_set("a", b"1", b"2")
    assert not await other.compare_and_set("a", b"1", b"3")
    assert await ours.get("a") == b"2"
    assert TOKEN.encode() not in (await only(bare))[1]


async def test_every_single_changed_byte_is_noticed(bare: Store, ours: SealedStore):
    await ours.put("a", b"value")
    key, sealed = await only(bare)
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        await bare.put(key, bytes(changed))
        assert await ours.get("a") is None
        assert await ours.scan("") == {}


@pytest.mark.parametrize("cut", [0, 1, MAC_BYTES - 1, MAC_BYTES, MAC_BYTES + 1])
async def test_a_part_of_a_record_is_none(bare: Store, ours: SealedStore, cut: int):
    await ours.put("a", b"value")
    key, sealed = await only(bare)
    await bare.put(key, sealed[:cut])
    assert await ours.get("a") is None


async def test_a_record_under_another_key_is_none(bare: Store, ours: SealedStore):
    await ours.put("member/a", b"value")
    key, sealed = await only(bare)
    await bare.put(key.replace("/a", "/b"), sealed)
    await bare.put("member/c", sealed)
    assert await ours.scan("member/") == {"member/a": b"value"}
    assert await ours.get("member/b") is None


async def test_what_is_not_ours_keeps_nobody_from_writing(bare: Store, ours: SealedStore):
    await ours.put("a", b"1")
    key, _ = await only(bare)
    await bare.put(key, b"garbage")
    assert not await ours.compare_and_set("a", b"1", b"2")
    assert await ours.compare_and_set("a", None, b"2")
    assert await ours.get("a") == b"2"
    assert not await ours.compare_and_set("a", None, b"3")


async def test_what_is_too_long_is_none(ours: SealedStore):
    await ours.put("a", bytes(MAX_VALUE_BYTES))
    assert await ours.get("a") is None


@given(sealed=st.binary(max_size=200), key=st.text(max_size=20))
def test_nobody_makes_a_record_by_chance(sealed: bytes, key: str):
    async def read() -> None:
        bare = MemoryStore()
        ours = SealedStore(bare, TOKEN)
        await ours.put(key, b"")
        ((marked, _),) = (await bare.scan("")).items()
        await bare.put(marked, sealed)
        await bare.put(key, sealed)
        assert await ours.get(key) is None
        assert await ours.scan("") == {}

    asyncio.run(read())


async def test_keys_and_values_of_any_kind_in_redis_are_passed_over():
    async with redis_server() as server:
        bare = RedisStore(server.url, timeout_s=5)
        ours = Membership(SealedStore(bare, TOKEN))
        await ours.join(member("d0"))
        intruder = bare._redis
        await intruder.set(b"penstock:member/\xff\x00", b"\xff")
        await intruder.lpush("penstock:member/decode/list", "no string")
        assert await ours.members() == [member("d0")]
        await bare.close()


async def test_two_clusters_in_one_store_pass_each_other_over_with_one_warning(
    bare: Store, caplog: pytest.LogCaptureFixture
):
    """Their workers have the same names."""
    one, other = (Membership(SealedStore(bare, token)) for token in (TOKEN, "another-token-here"))
    for number in range(3):
        await one.join(member(f"d{number}", port=1))
        await other.join(member(f"d{number}", port=2))
    with caplog.at_level(logging.WARNING):
        for _ in range(10):
            assert {m.worker.address for m in await one.members()} == {"127.0.0.1:1"}
            assert {m.worker.address for m in await other.members()} == {"127.0.0.1:2"}
    assert sum("two clusters share it" in text for text in caplog.messages) == 2


async def test_who_fills_the_store_does_not_fill_the_log(caplog: pytest.LogCaptureFixture):
    bare = MemoryStore()
    ours = SealedStore(bare, TOKEN)
    for number in range(1000):
        await bare.put(f"member/{number}#x{number}", b"garbage")
    for _ in range(3):
        assert await ours.scan("member/") == {}
    assert len(caplog.messages) < 100


# What was once true, put back


async def recorded(bare: Store) -> tuple[str, bytes]:
    return await only(bare, "member/decode/d0")


def life(incarnation: str) -> Member:
    return member("d0", incarnation, port=int(incarnation))


async def test_the_record_of_a_life_that_was_replaced_does_not_come_back(
    bare: Store, ours: SealedStore, caplog: pytest.LogCaptureFixture
):
    worker, router = Membership(ours), Membership(SealedStore(bare, TOKEN))
    await worker.join(life("1"))
    key, old = await recorded(bare)
    assert await router.members() == [life("1")]
    await worker.join(life("2"))
    assert await router.members() == [life("2")]
    await bare.put(key, old)
    for _ in range(3):
        assert await router.members() == []
    assert sum("past life" in text for text in caplog.messages) == 1
    await worker.join(life("2"))  # its next heartbeat
    assert await router.members() == [life("2")]


async def test_the_record_of_a_life_that_has_left_does_not_come_back(
    bare: Store, ours: SealedStore
):
    worker, router = Membership(ours), Membership(SealedStore(bare, TOKEN))
    await worker.join(life("1"))
    key, old = await recorded(bare)
    assert await router.members() == [life("1")]
    assert await worker.leave(D0, Incarnation("1"))
    assert await router.members() == []
    await bare.compare_and_set(key, old, None)
    await bare.put(key, old)
    assert await router.members() == []
    await worker.join(life("2"))
    assert await router.members() == [life("2")]


async def test_a_worker_that_lapsed_and_comes_back_is_the_same_member(
    bare: Store, ours: SealedStore
):
    worker, router = Membership(ours), Membership(SealedStore(bare, TOKEN))
    await worker.join(life("1"))
    assert await router.members() == [life("1")]
    await bare.compare_and_set(*await recorded(bare), None)
    assert await router.members() == []
    await worker.join(life("1"))
    assert await router.members() == [life("1")]


async def test_the_note_of_who_has_left_cannot_be_forged(bare: Store, ours: SealedStore):
    worker = Membership(ours)
    await worker.join(life("1"))
    key, _ = await recorded(bare)
    await bare.put(key, b"left 1")
    assert await worker.members() == []  # deleting is what anybody can do who writes there
    await worker.join(life("1"))
    assert await worker.members() == [life("1")]
