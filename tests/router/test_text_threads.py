"""Blocking work runs beside the loop, in bounded number."""

import asyncio
import threading

import pytest

from cluster.errors import InvalidRequest, Overloaded
from router.front.text_threads import TextThreads
from tests.router.cluster_of_fakes import Cluster


async def test_work_runs_elsewhere_and_its_errors_come_back() -> None:
    threads = TextThreads()
    assert await threads.run(1, threading.get_ident) != threading.get_ident()
    with pytest.raises(InvalidRequest):
        await threads.run(1, _raise)
    threads.close()


def _raise() -> None:
    raise InvalidRequest("text", "No.")


async def test_beyond_the_bound_work_is_shed_until_some_has_ended() -> None:
    threads, go_on = TextThreads(num_threads=1, max_waiting=1), threading.Event()
    running, waiting = [asyncio.create_task(threads.run(1, go_on.wait, 10)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await threads.run(1, _raise)
    waiting.cancel()  # gives its place back; what runs keeps its own until it ends
    await asyncio.wait([waiting])
    third = asyncio.create_task(threads.run(1, go_on.wait, 10))
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running])
    with pytest.raises(Overloaded):
        await threads.run(1, _raise)
    go_on.set()
    assert await third
    assert await threads.run(1, len, "abc") == 3
    threads.close()


async def test_what_is_tiny_needs_no_thread(cluster: Cluster) -> None:
    """To have a thread do it, and be told, takes longer than the work."""
    async with cluster.worker("d0") as worker:
        await cluster.serving(worker)
        begun = cluster.router.lanes.threads._executor._threads
        await cluster.generate(text="hello", stop={"max_tokens": 1})
        assert not begun
        await cluster.generate(text="hello " * 60, stop={"max_tokens": 1})
        assert begun
