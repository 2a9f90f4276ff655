"""Small work goes before large, nobody waits without bound, and who leaves takes nothing along."""

import asyncio
import random

import pytest

from cluster.errors import Overloaded
from router.front.lane import MAX_PASSED_S, Lane


def lane(now: list[float], **changes: int) -> Lane:
    bounds = {"num_places": 1, "max_waiting": 10, "max_waiting_bytes": 1000, "largest_bytes": 100}
    return Lane(**{**bounds, **changes}, clock=lambda: now[0])


async def entered(lane: Lane, num_bytes: int, order: list[int]) -> None:
    await lane.enter(num_bytes)
    order.append(num_bytes)
    lane.leave()


async def waiting(lane: Lane, sizes: list[int], order: list[int]) -> list["asyncio.Task[None]"]:
    tasks = [asyncio.create_task(entered(lane, size, order)) for size in sizes]
    await asyncio.sleep(0)
    return tasks


async def test_the_smallest_is_next() -> None:
    order: list[int] = []
    lane_ = lane([0.0])
    await lane_.enter(100)
    tasks = await waiting(lane_, [50, 90, 1, 20], order)
    lane_.leave()
    await asyncio.gather(*tasks)
    assert order == [1, 20, 50, 90]


async def test_the_largest_is_passed_for_a_while_and_not_for_ever() -> None:
    now, order = [0.0], list[int]()
    lane_ = lane(now)
    await lane_.enter(1)
    tasks = await waiting(lane_, [100, 500], order)  # there is nothing above the largest
    now[0] = MAX_PASSED_S - 1.0
    tasks += await waiting(lane_, [1], order)
    now[0] = MAX_PASSED_S + 1.0
    tasks += await waiting(lane_, [2], order)
    lane_.leave()
    await asyncio.gather(*tasks)
    assert order == [1, 100, 500, 2]


@pytest.mark.parametrize("changes", [{"max_waiting": 2}, {"max_waiting_bytes": 60}])
async def test_what_is_too_much_is_refused_at_once(changes: dict[str, int]) -> None:
    lane_ = lane([0.0], **changes)
    await lane_.enter(100)
    tasks = await waiting(lane_, [30, 30], [])
    with pytest.raises(Overloaded, match=r"no more are taken on|send smaller ones"):
        await lane_.enter(30)
    tasks[0].cancel()
    await asyncio.wait(tasks[:1])
    tasks += await waiting(lane_, [30], [])  # its place among those who wait is free at once
    lane_.leave()
    await asyncio.gather(*tasks[1:])


async def test_no_place_is_lost_whoever_gives_up_and_when() -> None:
    seed = random.Random(5)
    lane_ = lane([0.0], num_places=2, max_waiting=100, max_waiting_bytes=100_000)

    async def work(num_bytes: int) -> None:
        await lane_.enter(num_bytes)
        try:
            await asyncio.sleep(0)
        finally:
            lane_.leave()

    tasks = [asyncio.create_task(work(seed.randrange(100))) for _ in range(100)]
    for task in seed.sample(tasks, 60):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.wait(tasks)
    assert (lane_.num_waiting, lane_.num_waiting_bytes) == (0, 0)
    async with asyncio.timeout(1):
        await lane_.enter(1)
        await lane_.enter(1)
