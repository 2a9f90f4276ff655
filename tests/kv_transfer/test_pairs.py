"""Which transport joins two workers, and what is remembered of it."""

import asyncio

import pytest

from cluster.errors import ConfigError, TransferFailed
from cluster.types import Incarnation, WorkerAddress, WorkerId
from kv_transfer import pairs as pairs_module
from tests.cluster.cluster_samples import FINGERPRINT
from tests.kv_transfer.fake_transport import FakePeer, FakeTransport, pairs_of


def peer_of(life: str = "1", transports: tuple[str, ...] = ("fast", "slow")) -> WorkerAddress:
    return WorkerAddress(
        worker_id=WorkerId("other"),
        incarnation=Incarnation(life),
        address="127.0.0.1:1",
        transports=dict.fromkeys(transports, life),
        fingerprint=FINGERPRINT,
    )


async def test_the_fastest_that_both_have_is_taken_and_kept() -> None:
    fast, slow = FakeTransport("fast"), FakeTransport("slow")
    pairs = pairs_of(fast, slow)
    peer = await pairs.connect(peer_of())
    assert peer.transport == "fast"
    assert await pairs.connect(peer_of()) is peer
    assert (await pairs.connect(peer_of("2", ("slow",)))).transport == "slow"
    assert (fast.num_connects, slow.num_connects) == (1, 1)


async def test_when_one_fails_the_next_is_tried_and_then_used() -> None:
    fast, slow = FakeTransport("fast", "no way"), FakeTransport("slow")
    pairs = pairs_of(fast, slow)
    for _ in range(3):
        assert (await pairs.connect(peer_of())).transport == "slow"
    assert fast.num_connects == 1


async def test_all_failures_are_told_and_not_asked_for_again_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fast, slow = FakeTransport("fast", "no way"), FakeTransport("slow", "too far")
    pairs = pairs_of(fast, slow)
    for _ in range(3):
        with pytest.raises(TransferFailed, match=r"fast: no way slow: too far"):
            await pairs.connect(peer_of())
    assert fast.num_connects == 1
    now = pairs_module.time.monotonic()
    monkeypatch.setattr(pairs_module.time, "monotonic", lambda: now + 1)
    fast.failure = ""
    assert (await pairs.connect(peer_of())).transport == "fast"


async def test_a_required_transport_is_the_only_one() -> None:
    fast, slow = FakeTransport("fast", "no way"), FakeTransport("slow")
    pairs = pairs_of(fast, slow, required="fast")
    with pytest.raises(TransferFailed, match="no way"):
        await pairs.connect(peer_of())
    with pytest.raises(TransferFailed, match="only 'fast' is allowed"):
        await pairs.connect(peer_of(), by="slow")
    assert slow.num_connects == 0
    with pytest.raises(ConfigError, match="'require_transport' is 'other'"):
        pairs_of(fast, required="other")


async def test_a_transport_that_is_not_trusted_any_more_gives_way_to_the_next() -> None:
    fast, slow = FakeTransport("fast"), FakeTransport("slow")
    pairs = pairs_of(fast, slow)
    peer = await pairs.connect(peer_of())
    assert pairs.distrust(peer, "it lost a byte")
    other = await pairs.connect(peer_of())
    assert other.transport == "slow"
    assert (await pairs.connect(peer_of(), by="fast")) is peer  # whoever asks for it
    assert not pairs.distrust(other, "it lost two")
    assert await pairs.connect(peer_of()) is peer


async def test_what_was_distrusted_is_tried_anew_when_nothing_else_works() -> None:
    fast, slow = FakeTransport("fast"), FakeTransport("slow", "too far")
    pairs = pairs_of(fast, slow)
    assert pairs.distrust(await pairs.connect(peer_of()), "it lost a byte")
    with pytest.raises(TransferFailed, match="fast: it lost a byte slow: too far"):
        await pairs.connect(peer_of())
    assert (await pairs.connect(peer_of())).transport == "fast"


async def test_a_required_transport_is_kept_however_it_fails() -> None:
    fast, slow = FakeTransport("fast"), FakeTransport("slow")
    pairs = pairs_of(fast, slow, required="fast")
    peer = await pairs.connect(peer_of())
    assert not pairs.distrust(peer, "it lost a byte")
    assert await pairs.connect(peer_of()) is peer


async def test_who_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs_module, "CONNECT_S", 0.01)
    fast, slow = FakeTransport("fast"), FakeTransport("slow")
    fast.gate.clear()
    assert (await pairs_of(fast, slow).connect(peer_of())).transport == "slow"


async def test_those_who_want_a_peer_at_once_share_one_connection() -> None:
    fast = FakeTransport("fast")
    pairs = pairs_of(fast)
    fast.gate.clear()
    tasks = [asyncio.create_task(pairs.connect(peer_of())) for _ in range(4)]
    await asyncio.sleep(0)
    fast.gate.set()
    assert len({id(peer) for peer in await asyncio.gather(*tasks)}) == 1
    assert fast.num_connects == 1


async def test_a_connection_is_made_though_who_wanted_it_has_left() -> None:
    fast = FakeTransport("fast")
    pairs = pairs_of(fast)
    fast.gate.clear()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await pairs.connect(peer_of())
    fast.gate.set()
    assert (await pairs.connect(peer_of())).transport == "fast"
    assert fast.num_connects == 1


async def test_a_life_that_is_forgotten_has_ended_and_the_next_is_another() -> None:
    fast = FakeTransport("fast")
    pairs = pairs_of(fast)
    old = await pairs.connect(peer_of("1"))
    assert pairs.is_connected(Incarnation("1"))
    pairs.forget(Incarnation("1"))
    assert old.life.is_over
    assert not pairs.is_connected(Incarnation("1"))
    new = await pairs.connect(peer_of("2"))
    assert not new.life.is_over
    new.life.end()  # its transport saw it die
    assert not pairs.is_connected(Incarnation("2"))
    assert not pairs._peers


async def test_who_answers_under_a_wrong_name_is_refused() -> None:
    class Stranger(FakeTransport):
        async def connect(self, address: str) -> FakePeer:
            return FakePeer(self.name, "a stranger")

    with pytest.raises(TransferFailed, match="Behind fast is 'a stranger', not '1'"):
        await pairs_of(Stranger("fast")).connect(peer_of())


async def test_a_life_that_has_ended_itself_is_over_though_its_process_is_seen_to_live() -> None:
    pairs = pairs_of(FakeTransport("fast"))
    peer = await pairs.connect(peer_of("1"))
    peer.life.is_watched = True
    pairs.forget(Incarnation("1"))
    assert pairs.is_connected(Incarnation("1"))
    pairs.forget(Incarnation("1"), by_itself=True)
    assert peer.life.is_over
    assert not pairs._peers
