"""Whether a client reads is judged by the progress of writes, and never by the router's absence."""

import asyncio
from typing import Any

import pytest

from cluster.lateness import LOOK_S
from router.reader import Reader
from tests.virtual_loop import VirtualLoop, run

LIMIT_S = 60.0


class Client:
    """A call whose client reads when it is told to."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        assert isinstance(self.loop, VirtualLoop)
        self.reads = asyncio.Event()

    async def send(self, data: bytes) -> None:
        await self.reads.wait()

    def read_every(self, seconds: float) -> None:
        self.reads.set()
        self.loop.call_soon(self.reads.clear)
        self.loop.call_later(seconds, self.read_every, seconds)


async def stream(client: Any, num_messages: int) -> bool:
    """Whether all were read."""
    reader = Reader(client, LIMIT_S)
    try:
        async with reader:
            for _ in range(num_messages):
                await reader.send(b"")
    except TimeoutError:
        assert reader.has_gone
        return False
    return True


def test_who_reads_nothing_is_given_up_when_the_limit_is_over() -> None:
    async def wait() -> float:
        client = Client()
        assert not await stream(client, 1)
        return client.loop.time()

    assert run(wait()) == pytest.approx(LIMIT_S, abs=LOOK_S)


def test_who_reads_slowly_is_left_alone() -> None:
    async def wait() -> bool:
        client = Client()
        client.read_every(LIMIT_S - 1.0)
        return await stream(client, 20)

    assert run(wait())


@pytest.mark.parametrize("stopped_s", [1.0, 8.0, 3600.0])
@pytest.mark.parametrize("before_s", [0.1, LIMIT_S - 0.1])
def test_a_router_that_was_stopped_blames_no_client(stopped_s: float, before_s: float) -> None:
    async def wait() -> bool:
        client = Client()

        def be_stopped() -> None:
            client.loop.stand_still(stopped_s)
            client.loop.call_later(0.05, client.reads.set)

        client.loop.call_later(before_s, be_stopped)
        return await stream(client, 1)

    assert run(wait())


def test_a_long_wait_for_tokens_is_not_the_clients() -> None:
    async def wait() -> bool:
        client = Client()
        client.reads.set()
        async with Reader(client, LIMIT_S) as reader:  # type: ignore[arg-type]
            for _ in range(3):
                await reader.send(b"")
                await asyncio.sleep(10 * LIMIT_S)
        return True

    assert run(wait())


def test_one_that_stalls_after_a_long_answer_is_given_up_too() -> None:
    async def wait() -> float:
        client = Client()
        client.reads.set()
        async with Reader(client, LIMIT_S) as reader:  # type: ignore[arg-type]
            await reader.send(b"")
            await asyncio.sleep(100.0)
            client.reads.clear()
            await reader.send(b"")
        raise AssertionError

    with pytest.raises(TimeoutError):
        run(wait())
