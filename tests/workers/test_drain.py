"""One drain, whoever asks for it: what is in progress may end, is cut off at the bound, and what
comes then."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from cluster.errors import Draining
from cluster.open_calls import OpenCalls
from cluster.types import Role
from worker import drain
from worker.drain import Drain


class Rig:
    """A worker's calls, its drain, and the task that follows it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.calls = OpenCalls()
        self.served = OpenCalls()
        self.drain = Drain(self.calls, lambda: self.now)
        self.rests = asyncio.Event()
        self.rests.set()
        self.num_changes = 0
        self.following: asyncio.Task[Role | None]

    async def follow(self) -> Role | None:
        def changed() -> None:
            self.num_changes += 1

        async def at_rest() -> None:
            await self.rests.wait()

        return await self.drain.follow(changed=changed, served=[self.served], at_rest=at_rest)

    @asynccontextmanager
    async def call(self) -> AsyncIterator[asyncio.Task[None]]:
        """One that goes on until its end or until it is cut off."""
        begun = asyncio.Event()

        async def serve() -> None:
            with self.calls, self.served:
                begun.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(serve())
        await begun.wait()
        yield task
        task.cancel()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    rig.following = asyncio.create_task(rig.follow())
    yield rig
    rig.following.cancel()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_nothing_new_begins_and_what_is_in_progress_may_end(rig: Rig):
    assert rig.drain.report() is None
    async with rig.call() as call:
        rig.drain.begin(60.0)
        assert rig.calls.is_draining
        rig.now += 2.0
        report = rig.drain.report()
        assert report is not None
        assert (report.seconds, report.left_s, report.then, report.ends) == (2.0, 58.0, None, False)
        assert rig.drain.num_open_calls == 1
        assert not call.done()
    await until(lambda: rig.drain.num_open_calls == 0)
    assert not rig.served.is_cut_off
    assert not rig.following.done()  # it stays drained
    assert rig.drain.report() is not None


async def test_what_has_not_ended_at_the_bound_is_cut_off_and_serving_again_takes_calls(rig: Rig):
    async with rig.call() as call:
        rig.drain.begin(0.0)
        await asyncio.wait({call})
        assert call.cancelled()
        assert rig.served.is_cut_off
    rig.drain.undo()
    assert not rig.calls.is_draining
    await until(lambda: not rig.served.is_cut_off)
    assert rig.drain.report() is None
    assert rig.num_changes == 3  # at the start, at either order


async def test_serving_again_spares_what_is_in_progress(rig: Rig):
    async with rig.call() as call:
        rig.drain.begin(60.0)
        await until(lambda: rig.num_changes == 2)
        rig.drain.undo()
        await until(lambda: rig.num_changes == 3)
        assert not call.done()


@pytest.mark.parametrize("role", Role)
async def test_a_flip_is_the_end_of_a_life_once_it_is_drained_and_nobody_may_write(
    rig: Rig, role: Role
):
    rig.rests.clear()
    async with rig.call():
        rig.drain.begin(60.0, then=role)
        await until(lambda: rig.num_changes == 2)
    await until(lambda: rig.calls.num == 0)
    assert not rig.following.done()
    rig.rests.set()
    assert await rig.following is role


async def test_a_worker_whose_blocks_may_be_written_serves_on_as_it_was(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(drain, "SETTLE_S", 0.01)
    rig.rests.clear()
    rig.drain.begin(60.0, then=Role.PREFILL)
    await until(lambda: rig.num_changes == 2)
    await until(lambda: rig.drain.report() is None)
    assert not rig.calls.is_draining
    assert not rig.following.done()


async def test_a_life_whose_rest_cannot_be_told_is_no_rest():
    """Its successor would have memory into which others may write yet."""
    drain = Drain(OpenCalls())

    async def at_rest() -> None:
        raise RuntimeError("a peer's state is broken")

    drain.begin(60.0, then=Role.PREFILL)
    with pytest.raises(RuntimeError, match="broken"):
        await drain.follow(changed=lambda: None, served=[], at_rest=at_rest)


async def test_a_drain_may_become_a_flip_and_is_as_old_as_it_was(rig: Rig):
    async with rig.call():
        rig.drain.begin(60.0)
        await until(lambda: rig.num_changes == 2)
        rig.now += 5.0
        rig.drain.begin(10.0, then=Role.DECODE)
        report = rig.drain.report()
        assert report is not None
        assert (report.seconds, report.left_s, report.then) == (5.0, 10.0, Role.DECODE)
    assert await rig.following is Role.DECODE


async def test_a_process_that_is_told_to_end_ends_whatever_it_was_told_before_or_after(rig: Rig):
    async with rig.call():
        rig.drain.begin(60.0, then=Role.DECODE)
        rig.drain.begin(60.0, ends=True)
        with pytest.raises(Draining, match="told to end"):
            rig.drain.undo()
        with pytest.raises(Draining, match="told to end"):
            rig.drain.begin(60.0, then=Role.PREFILL)
    assert await rig.following is None
