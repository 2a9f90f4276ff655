"""Who counts as a member: the newest life of each worker, while it says so, if it fits."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from cluster.errors import FingerprintMismatch, StaleIncarnation
from cluster.fingerprint import kv_mismatch, mismatch
from cluster.membership import Membership, new_incarnation
from cluster.redis_store import RedisStore
from cluster.store import MemoryStore, Store
from cluster.types import Fingerprint, Incarnation, Role, WorkerId
from cluster.wire_version import WIRE_VERSION
from tests.cluster.cluster_samples import FINGERPRINT, member, with_layout
from tests.redis_server import redis_server

D0 = WorkerId("d0")


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
        return
    async with redis_server() as server:
        redis = RedisStore(server.url, timeout_s=5)
        yield redis
        await redis.close()


@pytest.fixture
def membership(store: Store) -> Membership:
    return Membership(store)


async def test_all_who_joined_are_members_for_each_who_looks(store: Store, membership: Membership):
    one, two = member("d0"), member("p0", role=Role.PREFILL)
    assert await membership.join(one) == [one]
    assert await membership.join(two) == [one, two]
    assert await Membership(store).members() == [one, two]


async def test_a_record_that_is_not_renewed_lapses():
    now = [0.0]
    membership = Membership(MemoryStore(clock=lambda: now[0]))
    renewed, silent = member("d0"), member("d1")
    await membership.join(renewed, ttl_s=3)
    await membership.join(silent, ttl_s=3)
    for now[0] in (1.0, 2.0, 3.0):
        await membership.join(renewed, ttl_s=3)
    assert await membership.members() == [renewed]


async def test_a_new_life_replaces_the_old_one_which_can_then_neither_return_nor_delete_it(
    membership: Membership,
):
    old, new = member("d0", "1"), member("d0", "2", port=2)
    await membership.join(old)
    assert await membership.join(new) == [new]
    with pytest.raises(StaleIncarnation, match=r"newer life of 'd0'.*127\.0\.0\.1:2"):
        await membership.join(old)
    assert not await membership.leave(D0, Incarnation("1"))
    assert await membership.members() == [new]
    assert await membership.leave(D0, Incarnation("2"))
    assert await membership.members() == []
    assert await membership.join(old) == [old]  # nobody replaces it any more


async def test_a_worker_that_changes_its_record_within_one_life_is_renewed(
    membership: Membership,
):
    await membership.join(member())
    changed = replace(member(), max_sequences=1)
    assert await membership.join(changed) == [changed]


async def test_of_two_lives_that_join_at_once_the_newer_stays(membership: Membership):
    async def join(incarnation: str) -> None:
        await membership.join(member("d0", incarnation))

    outcomes = await asyncio.gather(*map(join, "12"), return_exceptions=True)
    assert [m.worker.incarnation for m in await membership.members()] == ["2"]
    assert not isinstance(outcomes[1], BaseException)


@pytest.mark.parametrize("record", [b"\xff\xff", b"", b"\x12\x00"])
async def test_a_record_that_nobody_understands_is_passed_over_and_can_be_replaced(
    record: bytes, caplog: pytest.LogCaptureFixture
):
    store = MemoryStore()
    for key in ("member/decode/d0", "member/decode/stranger"):
        await store.put(key, record)
    membership = Membership(store)
    assert await membership.members() == []
    assert not await membership.leave(D0, Incarnation("1"))
    assert await membership.join(member("d0")) == [member("d0")]
    assert "passed over" in caplog.text


def test_each_life_has_a_name_greater_than_the_last():
    names = [new_incarnation() for _ in range(100)]
    assert names == sorted(names)
    assert len(set(names)) == 100


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (replace(FINGERPRINT, model_digest="x"), "model_digest: x and model"),
        (replace(FINGERPRINT, tokenizer_digest="x"), "tokenizer_digest: x and tokenizer"),
        (replace(FINGERPRINT, template_digest="x"), "template_digest: x and template"),
        (replace(FINGERPRINT, hash_grain=32), "hash_grain: 32 and 16"),
        (replace(FINGERPRINT, wire_version=WIRE_VERSION + 2), "wire_version: 5 and 3"),
        (replace(FINGERPRINT, wire_version=WIRE_VERSION - 2), "wire_version: 1 and 3"),
        (with_layout(num_layers=3), "num_layers: 3 and 2"),
        (with_layout(num_kv_heads=4), "num_kv_heads: 4 and 2"),
        (with_layout(head_dim=16), "head_dim: 16 and 8"),
        (with_layout(num_planes=1), "num_planes: 1 and 2"),
        (with_layout(windows=(8, None)), "windows: (8, None) and ()"),
    ],
)
async def test_a_worker_that_does_not_fit_is_refused_with_the_difference(
    other: Fingerprint, difference: str
):
    membership = Membership(MemoryStore())
    await membership.join(member("p0", role=Role.PREFILL))
    with pytest.raises(FingerprintMismatch, match=re.escape(difference)) as raised:
        await membership.join(member("d0", fingerprint=other))
    assert "'p0'" in str(raised.value)
    assert mismatch(other, FINGERPRINT) == [difference]
    assert len(await membership.members()) == 1


@pytest.mark.parametrize("version", [WIRE_VERSION - 1, WIRE_VERSION + 1])
async def test_workers_of_wire_versions_next_to_each_other_are_members_without_a_way_for_kv(
    version: int,
):
    membership = Membership(MemoryStore())
    await membership.join(member("p0", role=Role.PREFILL))
    other = replace(FINGERPRINT, wire_version=version)
    assert len(await membership.join(member("d0", fingerprint=other))) == 2
    assert kv_mismatch(other, FINGERPRINT) == [f"wire_version: {version} and {WIRE_VERSION}"]


@pytest.mark.parametrize(
    "changes",
    [
        {"block_size": 32, "num_blocks": 9},
        {"num_kv_heads": 1, "first_head": 1, "total_heads": 2},  # one of two shards
    ],
)
async def test_how_a_pool_holds_its_kv_may_differ(changes: dict[str, int]):
    membership = Membership(MemoryStore())
    await membership.join(member("p0", role=Role.PREFILL))
    other = with_layout(**changes)
    assert len(await membership.join(member("d0", fingerprint=other))) == 2


@pytest.mark.parametrize(
    ("prefill", "decode", "wire_dtype", "fits"),
    [
        ("bfloat16", "float32", None, True),
        ("float32", "bfloat16", None, False),
        ("float16", "bfloat16", None, False),
        ("float32", "bfloat16", "bfloat16", True),
        ("float32", "bfloat16", "int8", True),
    ],
)
@pytest.mark.parametrize("first", Role)
async def test_a_prefill_workers_kv_must_fit_into_every_decode_worker(
    prefill: str, decode: str, wire_dtype: str | None, fits: bool, first: Role
):
    narrow = replace(with_layout(dtype=decode), wire_dtype=wire_dtype)
    members = [
        member("p0", role=Role.PREFILL, fingerprint=with_layout(dtype=prefill)),
        member("d0", fingerprint=narrow),
    ]
    if first is Role.DECODE:
        members.reverse()
    membership = Membership(MemoryStore())
    await membership.join(members[0])
    if fits:
        assert len(await membership.join(members[1])) == 2
    else:
        with pytest.raises(FingerprintMismatch, match=f"dtype: {prefill} does not fit {decode}"):
            await membership.join(members[1])


async def test_workers_of_one_role_may_keep_kv_in_different_dtypes():
    membership = Membership(MemoryStore())
    await membership.join(member("d0"))
    other = with_layout(dtype="bfloat16")
    assert len(await membership.join(member("d1", fingerprint=other))) == 2


async def test_a_worker_alone_may_come_back_with_another_model():
    membership = Membership(MemoryStore())
    await membership.join(member("d0", "1"))
    other = replace(FINGERPRINT, model_digest="x")
    assert len(await membership.join(member("d0", "2", fingerprint=other))) == 1


async def test_of_a_worker_that_has_changed_its_role_the_newer_life_counts(
    store: Store, membership: Membership, caplog: pytest.LogCaptureFixture
):
    """Its record in the old role goes when it says goodbye, or lapses."""
    old, new = member("w", "1"), member("w", "2", role=Role.PREFILL)
    other = member("d1")
    await membership.join(other)
    await membership.join(old)
    assert await membership.join(new) == [other, new]
    assert await Membership(store).members() == [other, new]
    assert not caplog.records
    with pytest.raises(StaleIncarnation, match="newer life of 'w'"):
        await membership.join(member("w", "0"))
    assert await membership.leave(WorkerId("w"), Incarnation("1"))
    assert await membership.members() == [other, new]
    assert await membership.leave(WorkerId("w"), Incarnation("2"))
    assert await Membership(store).members() == [other]
    again = member("w", "3")
    assert await membership.join(again) == [other, again]
