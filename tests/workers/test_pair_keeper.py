"""What the keeper of pairs does with probes that fail, without any worker."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from cluster.authority import PLAIN
from cluster.errors import DigestMismatch, Overloaded, TransferFailed
from cluster.types import Member, Role
from tests.cluster.cluster_samples import member
from tests.kv_transfer.fake_transport import FakeTransport, pairs_of
from tests.virtual_loop import run
from worker import pair_keeper
from worker.pair_keeper import PairKeeper
from worker.peers import Peers

ME = member("d0", "0", role=Role.DECODE)


class FakeProbes:
    """Fails by transport, as told."""

    def __init__(self) -> None:
        self.last: dict[str, Any] = {}
        self.failures: dict[str, Exception] = {}
        self.tried: list[str] = []

    async def probe(self, source: Any, num_tokens: int, *, by: str, limit_s: float) -> None:
        self.tried.append(by)
        await asyncio.sleep(0)
        if by in self.failures:
            raise self.failures[by]
        self.last[source.incarnation] = by


class Rig:
    def __init__(self, tasks: asyncio.TaskGroup, *names: str) -> None:
        self.probes: Any = FakeProbes()
        self.pairs = pairs_of(*map(FakeTransport, names or ("shared_memory", "a")))
        self.peers = Peers(ME.worker, "token", PLAIN, self.pairs, tasks)
        self.keeper = PairKeeper(self.peers, self.probes, tasks, num_tokens=16)


@asynccontextmanager
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(pair_keeper, "FIRST_BACKOFF_S", 0.001)
    monkeypatch.setattr("kv_transfer.pairs.REFUSAL_S", 0.0)
    async with asyncio.TaskGroup() as tasks:
        made = Rig(tasks)
        yield made
        made.keeper.close()


def prefill(life: str = "1") -> Member:
    other = member("p0", life, role=Role.PREFILL)
    transports = dict.fromkeys(other.worker.transports, life)
    return replace(other, worker=replace(other.worker, transports=transports))


async def test_a_transport_whose_probe_fails_gives_way_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with rig(monkeypatch) as it:
        it.probes.failures["shared_memory"] = DigestMismatch("other bytes came")
        it.keeper.update(ME, [ME, prefill()])
        await it.keeper.settled.wait()
        assert it.probes.tried == ["shared_memory", "a"]
        assert (await it.peers.connect(prefill().worker)).transport == "a"


async def test_when_all_fail_all_are_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with rig(monkeypatch) as it:
        it.probes.failures = {
            "shared_memory": TransferFailed("no room"),
            "a": TransferFailed("no way"),
        }
        it.keeper.update(ME, [ME, prefill()])
        await it.keeper.settled.wait()
        assert it.keeper.num_refused == 1
        assert "no KV from 'p0': no way" in caplog.text
        with pytest.raises(TransferFailed, match="no way"):
            it.keeper.check(prefill().worker)
        it.probes.failures.clear()
        async with asyncio.timeout(5):
            while not it.keeper.num_up:  # noqa: ASYNC110 - it backs off for a millisecond
                await asyncio.sleep(0.001)
        assert it.keeper.num_refused == 0
        it.keeper.check(prefill().worker)
        assert (await it.peers.connect(prefill().worker)).transport == "shared_memory"


class LostProbes(FakeProbes):
    """None fails, and none comes through: as of a source that another life has replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.tried_s: list[float] = []

    async def probe(self, source: Any, num_tokens: int, *, by: str, limit_s: float) -> None:
        self.tried_s.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0)


def test_a_pair_of_which_no_probe_comes_through_is_tried_later_and_later_not_at_once_for_ever() -> (
    None
):
    async def look() -> tuple[list[float], str]:
        async with asyncio.TaskGroup() as tasks:
            it = Rig(tasks, "shared_memory")
            it.keeper._probes = it.probes = LostProbes()
            it.keeper.update(ME, [ME, prefill()])
            await it.keeper.settled.wait()
            with pytest.raises(TransferFailed) as caught:
                it.keeper.check(prefill().worker)
            await asyncio.sleep(20.0)
            it.keeper.close()
            return it.probes.tried_s, str(caught.value)

    tried_s, said = run(look())
    assert said == "No probe of 'p0' came through."
    assert [later - before for before, later in pairwise(tried_s)] == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]


async def test_who_has_no_block_to_spare_is_connected_at_least(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with rig(monkeypatch) as it:
        it.probes.failures["shared_memory"] = Overloaded("no block free")
        it.keeper.update(ME, [ME, prefill()])
        await it.keeper.settled.wait()
        assert it.pairs.is_connected(prefill().worker.incarnation)
        assert it.probes.tried == ["shared_memory"]


async def test_members_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig(monkeypatch) as it:
        it.keeper.update(ME, [ME])
        assert it.keeper.settled.is_set()  # alone: nobody to reach
        it.keeper.update(ME, [ME, prefill()])
        it.keeper.update(ME, [ME, prefill()])
        old = await it.peers.connect(prefill().worker)
        it.keeper.update(ME, [ME, prefill("2")])
        assert old.life.is_over
        await asyncio.sleep(0)
        assert it.probes.tried.count("shared_memory") <= 2
        it.keeper.update(ME, [ME])
        assert not it.keeper._keeping


async def test_a_router_that_knows_of_nobody_yet_costs_no_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with rig(monkeypatch) as it:
        it.keeper.update(ME, [ME, prefill()])
        await it.keeper.settled.wait()
        peer, channel = await it.peers.connect(prefill().worker), it.peers.channel(prefill().worker)
        it.keeper.update(ME, [ME])
        assert it.peers.known_channel(prefill().worker.incarnation) is channel
        it.keeper.update(ME, [ME, prefill()])
        assert await it.peers.connect(prefill().worker) is peer
        peer.life.end()
        it.keeper.update(ME, [ME])  # neither a member nor connected
        assert it.peers.known_channel(prefill().worker.incarnation) is None


async def test_a_store_whose_records_have_lapsed_costs_no_probe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that was stopped forgets all at once, and is told again at the next heartbeats."""
    async with rig(monkeypatch) as it:

        async def is_up(num: int) -> None:
            async with asyncio.timeout(5):
                while it.keeper.num_up != num:  # noqa: ASYNC110 - a few turns of the loop
                    await asyncio.sleep(0)

        it.keeper.update(ME, [ME, prefill()])
        await is_up(1)
        it.keeper.update(ME, [ME])
        await is_up(0)
        it.keeper.update(ME, [ME, prefill()])
        await is_up(1)
        assert it.probes.tried == ["shared_memory"]
        (await it.peers.connect(prefill().worker)).life.end()
        await is_up(0)
        it.keeper.update(ME, [ME])
        assert not it.probes.last, "what is over is forgotten"


@pytest.mark.parametrize("is_said", [True, False])
async def test_a_life_before_is_over_once_the_same_process_says_so(
    monkeypatch: pytest.MonkeyPatch, is_said: bool
) -> None:
    """Else its process, which is seen to live, might write yet: it was started twice."""
    async with rig(monkeypatch) as it:
        it.keeper.update(ME, [ME, prefill("1")])
        await it.keeper.settled.wait()
        old = await it.peers.connect(prefill("1").worker)
        old.life.is_watched = True  # type: ignore[misc]
        past = (prefill("1").worker.incarnation,) if is_said else ()
        it.keeper.update(ME, [ME, replace(prefill("2"), past_lives=past)])
        assert old.life.is_over is is_said
        assert (it.peers.known_channel(prefill("1").worker.incarnation) is None) or not is_said
