"""One holder at a time, and none that believes it for longer than it is true."""

import pytest

from cluster.errors import StoreUnavailable
from cluster.sealed_store import SealedStore
from cluster.store import MemoryStore
from deploy.planner.lease import Lease

TTL_S = 10.0


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class FlakyStore(MemoryStore):
    """A store that may be away."""

    is_away = False

    async def compare_and_set(
        self, key: str, expected: bytes | None, value: bytes | None, *, ttl_s: float | None = None
    ) -> bool:
        if self.is_away:
            raise StoreUnavailable("It is away.")
        return await super().compare_and_set(key, expected, value, ttl_s=ttl_s)


class World:
    """A store, and who wants the same lease."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.memory = FlakyStore(clock=self.clock)
        self.store = SealedStore(self.memory, "a token")

    def lease(self, name: str) -> Lease:
        return Lease(self.store, "planner/lease", name, ttl_s=TTL_S, clock=self.clock)


@pytest.fixture
def world() -> World:
    return World()


async def test_one_of_two_holds_it_for_as_long_as_it_renews_it(world: World) -> None:
    first, second = world.lease("a"), world.lease("b")
    assert await first.take()
    assert not await second.take()
    assert second.holder == "a"
    for _ in range(5):
        world.clock.now_s += 0.6 * TTL_S
        assert await first.take()
        assert not await second.take()


async def test_who_falls_silent_loses_it_and_knows_without_asking(world: World) -> None:
    first, second = world.lease("a"), world.lease("b")
    await first.take()
    world.clock.now_s += TTL_S
    assert not first.is_held
    assert await second.take()
    assert not await first.take()
    assert first.holder == "b"


async def test_without_a_store_it_lapses(world: World) -> None:
    lease = world.lease("a")
    await lease.take()
    world.memory.is_away = True
    world.clock.now_s += 0.5 * TTL_S
    assert await lease.take()  # nobody else can have it yet
    world.clock.now_s += 0.5 * TTL_S
    assert not await lease.take()
    world.memory.is_away = False
    assert await lease.take()


async def test_who_gives_it_back_keeps_nobody_waiting(world: World) -> None:
    first, second = world.lease("a"), world.lease("b")
    async with first.kept():
        assert first.is_held
        assert not await second.take()
    assert not first.is_held
    assert await second.take()
    await first.give_back()  # of another it takes nothing
    assert await second.take()


async def test_two_lives_of_one_name_are_two(world: World) -> None:
    assert await world.lease("a").take()
    assert not await world.lease("a").take()
