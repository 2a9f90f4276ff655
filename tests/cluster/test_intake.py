"""Bodies come in one at a time from each connection, and who sends nothing holds up nobody."""

import asyncio

import pytest

from cluster.intake import Intake


class Body:
    """Comes when it is told to."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self._came: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def read(self) -> bytes:
        self.asked.set()
        return await self._came

    def come(self) -> None:
        self._came.set_result(b"body")


async def test_of_one_connection_one_body_is_asked_for_at_a_time() -> None:
    intake, first, second = Intake(turn_s=60), Body(), Body()
    taking = [asyncio.create_task(intake.take("a", body.read)) for body in (first, second)]
    await first.asked.wait()
    assert not second.asked.is_set()
    first.come()
    await second.asked.wait()
    second.come()
    assert await asyncio.gather(*taking) == [b"body", b"body"]


async def test_connections_do_not_wait_for_one_another() -> None:
    intake, stuck, other = Intake(turn_s=60), Body(), Body()
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(intake.take("a", stuck.read))
        await stuck.asked.wait()
        other.come()
        assert await intake.take("b", other.read) == b"body"
        waiting.cancel()


@pytest.mark.parametrize("is_ended", [True, False])
async def test_whose_body_does_not_come_or_is_given_up_ends_its_turn(is_ended: bool) -> None:
    intake, stuck, other = Intake(turn_s=60 if is_ended else 0.01), Body(), Body()
    other.come()
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(intake.take("a", stuck.read))
        await stuck.asked.wait()
        if is_ended:
            waiting.cancel()
        assert await intake.take("a", other.read) == b"body"
        waiting.cancel()


async def test_who_is_cancelled_while_it_waits_takes_no_turn() -> None:
    intake, first, other = Intake(turn_s=60), Body(), Body()
    async with asyncio.TaskGroup() as tasks:
        holding = tasks.create_task(intake.take("a", first.read))
        await first.asked.wait()
        impatient = tasks.create_task(intake.take("a", Body().read))
        await asyncio.sleep(0)
        impatient.cancel()
        first.come()
        await holding
        other.come()
        assert await intake.take("a", other.read) == b"body"
