"""Calls over frames that end before their time, at any point: nobody waits for them any more, and
nothing of them is left.
"""

import asyncio
import gc
import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from cluster.errors import DeadlineExceeded, WorkerLost
from cluster.frames.wire import FrameKind
from penstock.v1 import worker_pb2
from router.frame_channel import FrameChannel
from tests.workers.frames_rig import deaf, hosting, message, numbers, taken
from worker.frame_call import FrameCall

Request = worker_pb2.DecodeRequest

LARGE = bytes(40 << 20)  # more than the sockets between both ends hold


async def test_who_leaves_while_his_request_is_on_its_way_says_so_and_sends_no_more() -> None:
    async with deaf() as (host, guest):
        call = asyncio.create_task(taken(guest, LARGE))
        for _ in range(1_000):  # until nothing leaves any more
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait({call})
        kinds = await host.kinds_until_cancelled()
        assert kinds[0] == FrameKind.START
        assert kinds[-1] == FrameKind.CANCEL
        assert len(kinds) < 640  # frames of 64 KiB are the whole
        assert not guest._calls


async def test_large_requests_leave_one_after_the_other() -> None:
    """So their host takes them in one by one, not all in the turn in which all are whole."""
    async with deaf() as (host, guest):
        calls = [asyncio.create_task(taken(guest, bytes(1 << 20))) for _ in range(4)]
        for _ in range(200):
            await asyncio.sleep(0)
        calls[-1].cancel()
        await host.kinds_until_cancelled()
        streams = [stream for kind, stream, _ in host.frames if kind == FrameKind.MORE]
        assert streams == sorted(streams)
        assert len(set(streams)) == 4
        for call in calls:
            call.cancel()


async def test_a_deadline_ends_a_call_whose_request_does_not_leave() -> None:
    async with deaf() as (host, guest):
        async with asyncio.timeout(5):
            with pytest.raises(DeadlineExceeded):
                await taken(guest, LARGE, timeout_s=0.1)
        assert len(await host.kinds_until_cancelled()) < 640


async def test_a_call_whose_time_is_up_ends_alone() -> None:
    async def ten(request: Request, call: FrameCall) -> None:
        for number in range(10):
            await call.send(message(number))
            await asyncio.sleep(0)

    async with hosting(ten) as host:
        guest = await host.guest()
        for seconds in (0.0, -1.0):
            with pytest.raises(DeadlineExceeded):
                await taken(guest, timeout_s=seconds)
        assert numbers(await taken(guest)) == list(range(10))


async def test_a_connection_outlives_its_numbers() -> None:
    async with hosting(some) as host:
        guest = await host.guest()
        guest._streams = itertools.count((1 << 32) - 2)
        for _ in range(4):
            assert numbers(await taken(guest)) == list(range(20))


async def test_each_call_of_a_lost_connection_has_an_error_of_its_own() -> None:
    async def for_ever(request: Request, call: FrameCall) -> None:
        await asyncio.Event().wait()

    async with hosting(for_ever) as host:
        guest = await host.guest()
        calls = [asyncio.create_task(taken(guest)) for _ in range(3)]
        await host.until_begun(3)
        guest.close()
        await asyncio.wait(calls)
        lost = [call.exception() for call in calls]
        assert all(isinstance(each, WorkerLost) for each in lost)
        assert len({id(each) for each in lost}) == 3  # a shared one holds what all callers held


async def test_who_stops_joining_leaves_no_future_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    complaints: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context["message"]))
    connect: Any = loop.create_connection

    async def cut_short(*args: Any, **named: Any) -> None:
        transport, _ = await connect(*args, **named)
        transport.abort()
        await asyncio.sleep(0)
        raise asyncio.CancelledError

    monkeypatch.setattr(loop, "create_connection", cut_short)
    async with hosting(lambda request, call: asyncio.sleep(0)) as host:
        with pytest.raises(asyncio.CancelledError):
            await host.guest()
        host.guests.clear()
    gc.collect()
    assert complaints == []


async def some(request: Request, call: FrameCall) -> None:
    for number in range(20):
        await call.send(message(number, num_letters=len(request.prompt_token_ids)))
        if number % 7 == 0:
            await asyncio.sleep(0)


async def _one_cut_short(guest: FrameChannel, chances: random.Random) -> bool:
    """Whether it was not."""
    size = chances.choice((0, 10, 5_000, 30_000))
    request = Request(prompt_token_ids=[1 << 27] * size).SerializeToString()
    timeout_s = chances.choice((None, 0.0, 0.01, 5.0))
    call = asyncio.create_task(taken(guest, request, timeout_s=timeout_s))
    for _ in range(chances.choice((0, 1, 2, 5, 20, 1000))):
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait({call})
    if call.cancelled():
        return False
    if (error := call.exception()) is not None:
        assert isinstance(error, DeadlineExceeded)
        return False
    assert numbers(call.result()) == list(range(20))
    return True


async def cut_at_random(num: int) -> None:
    """Of many calls most end early. The others get all of their own messages."""
    chances = random.Random(5)
    async with hosting(some) as host:
        guest = await host.guest()
        num_whole = 0
        for _ in range(num // 50):
            num_whole += sum(
                await asyncio.gather(*(_one_cut_short(guest, chances) for _ in range(50)))
            )
        assert num_whole > num // 50
        assert numbers(await taken(guest)) == list(range(20))
        async with asyncio.timeout(10):
            await host.open_calls.none()
        assert not guest._calls
        assert [(each.calls, each._incoming) for each in host.frames._guests] == [({}, {})]


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_calls_that_are_cut_at_random_leave_nothing(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(cut_at_random(300))


@pytest.mark.prove
async def test_ten_thousand_calls_that_are_cut_at_random_leave_nothing() -> None:
    await cut_at_random(10_000)
