"""What a router gets from `Worker.Watch`, over a real connection."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cluster.channel import Channel, Exchange, open_channel
from cluster.events import CacheUpdate, EventCursor, EventLog
from cluster.rpc import UNBOUNDED, Server, service_handlers
from cluster.types import CacheChange, GrainHash, Incarnation, LoadReport
from cluster.watch import WatchFeed, apply_events, apply_snapshot, watch_request
from penstock.v1 import worker_pb2
from tests import virtual_loop

WORKER = "penstock.v1.Worker"


def grain(number: int) -> GrainHash:
    return GrainHash(number.to_bytes(16, "big"))


def stored(*numbers: int) -> CacheChange:
    return CacheChange(stored=tuple(map(grain, numbers)))


class Worker:
    """A worker that only can be watched. Reports come when asked for, not by the clock."""

    def __init__(self, *, capacity: int = 100, interval_s: float = 3600.0) -> None:
        self.log = EventLog(Incarnation("life"), capacity=capacity)
        self.load = LoadReport(num_running=1)
        self.feed = WatchFeed(self.log, lambda: self.load, report_interval_s=interval_s)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[Channel]:
        async def watch(request: Any, call: Any) -> None:
            await self.feed.watch(request, call.send)

        services = [service_handlers(WORKER, {"Watch": watch}, deadlines=UNBOUNDED)]
        async with (
            Server(services) as server,
            open_channel(server.address) as channel,
            asyncio.timeout(10),
        ):
            yield channel


class Router:
    """Follows one worker over one stream at a time."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.cursor = EventCursor()
        self.view: set[GrainHash] = set()
        self.seen: list[str] = []
        self.loads: list[worker_pb2.LoadReport] = []
        self.told: list[int] = []  # numbers that came with them

    def open(self) -> Exchange:
        return self._channel.stream(WORKER, "Watch", watch_request(self.cursor), timeout_s=None)

    async def follow(self, stream: Exchange, is_enough: Callable[[], bool]) -> None:
        while not is_enough():
            message = await stream.receive()
            kind = message.WhichOneof("report")
            self.seen.append(kind)
            if kind == "load":
                self.loads.append(message.load)
                self.told.append(message.number)
            elif kind == "snapshot":
                self._apply(apply_snapshot(self.cursor, message.snapshot))
            else:
                self._apply(apply_events(self.cursor, message.events))

    def _apply(self, update: CacheUpdate | None) -> None:
        assert update is not None
        if update.is_reset:
            self.view.clear()
        for change in update.changes:
            self.view.difference_update(change.evicted)
            self.view.update(change.stored)


async def test_a_watcher_gets_a_snapshot_then_a_load_report_then_changes_as_they_come():
    worker = Worker()
    worker.log.append(stored(1, 2))
    async with worker.serve() as channel:
        router = Router(channel)
        async with router.open() as stream:
            await router.follow(stream, lambda: len(router.seen) == 2)
            assert router.seen == ["snapshot", "load"]
            assert router.view == {grain(1), grain(2)}
            worker.log.append(CacheChange(stored=(grain(3),), evicted=(grain(1),)))
            await router.follow(stream, lambda: router.cursor.number == 2)
    assert router.view == {grain(2), grain(3)}


async def test_an_empty_cache_has_an_empty_snapshot():
    worker = Worker()
    async with worker.serve() as channel:
        router = Router(channel)
        async with router.open() as stream:
            await router.follow(stream, lambda: bool(router.loads))
    assert router.seen == ["snapshot", "load"]
    assert (router.cursor.incarnation, router.cursor.number) == ("life", 0)


async def test_a_report_says_up_to_which_change_its_watcher_was_told():
    worker = Worker()
    worker.log.append(stored(1))
    async with worker.serve() as channel:
        router = Router(channel)
        async with router.open() as stream:
            await router.follow(stream, lambda: bool(router.loads))
            worker.log.append(stored(2))
            worker.feed.report_now()
            await router.follow(stream, lambda: len(router.loads) == 2)
    assert router.told == [1, 2]


async def test_who_comes_back_gets_what_was_missed_and_no_snapshot():
    worker = Worker()
    worker.log.append(stored(1))
    async with worker.serve() as channel:
        router = Router(channel)
        async with router.open() as stream:
            await router.follow(stream, lambda: bool(router.loads))
        for number in (2, 3):
            worker.log.append(stored(number))
        router.seen.clear()
        async with router.open() as stream:
            await router.follow(stream, lambda: len(router.seen) == 2)
    assert router.seen == ["events", "load"]
    assert router.view == {grain(1), grain(2), grain(3)}


@pytest.mark.parametrize(
    "request_",
    [
        worker_pb2.WatchRequest(incarnation="an earlier life", after_number=1),
        worker_pb2.WatchRequest(incarnation="life", after_number=1_000),
        worker_pb2.WatchRequest(incarnation="life", after_number=1 << 63),
        worker_pb2.WatchRequest(incarnation="life", after_number=0),  # has left the ring
        worker_pb2.WatchRequest(),
    ],
)
async def test_who_cannot_be_replayed_to_gets_a_snapshot(request_: Any):
    worker = Worker(capacity=1)
    worker.log.append(stored(1))
    worker.log.append(stored(2))
    async with (
        worker.serve() as channel,
        channel.stream(WORKER, "Watch", request_, timeout_s=None) as stream,
    ):
        first = (await stream.receive()).snapshot
    assert (first.incarnation, first.number, first.offset, first.last) == ("life", 2, 0, True)


async def test_a_large_cache_comes_in_parts_that_do_not_stop_a_router():
    worker = Worker()
    worker.log.append(stored(*range(70_000)))
    async with worker.serve() as channel:
        router = Router(channel)
        async with router.open() as stream:
            await router.follow(stream, lambda: bool(router.loads))
    assert router.seen == ["snapshot"] * 9 + ["load"]
    assert len(router.view) == 70_000


async def test_a_watcher_that_the_ring_has_passed_by_is_given_a_snapshot_in_the_same_stream():
    worker = Worker(capacity=2)
    read: asyncio.Queue[worker_pb2.WatchResponse] = asyncio.Queue(maxsize=1)
    watching = asyncio.create_task(worker.feed.watch(worker_pb2.WatchRequest(), read.put))
    first = await read.get()
    for number in range(5):
        worker.log.append(stored(number))  # none of which this slow reader has read
    second, third = await read.get(), await read.get()
    watching.cancel()
    await asyncio.wait([watching])
    assert first.snapshot.number == 0
    assert {second.WhichOneof("report"), third.WhichOneof("report")} == {"load", "snapshot"}
    assert max(second.snapshot.number, third.snapshot.number) == 5


async def test_a_burst_of_changes_travels_in_few_messages_of_bounded_size():
    worker = Worker(capacity=100_000)
    async with worker.serve() as channel:
        router = Router(channel)
        async with router.open() as stream:
            await router.follow(stream, lambda: bool(router.loads))
            for number in range(5_000):
                worker.log.append(stored(*range(10 * number, 10 * number + 10)))
            await router.follow(stream, lambda: router.cursor.number == 5_000)
    assert router.seen.count("events") <= 20
    assert len(router.view) == 50_000


async def test_load_is_reported_by_the_clock_and_at_once_when_told():
    worker = Worker(interval_s=0.02)
    async with worker.serve() as channel:
        router = Router(channel)
        async with router.open() as stream:
            await router.follow(stream, lambda: len(router.loads) == 3)
    patient = Worker()
    async with patient.serve() as channel:
        router = Router(channel)
        async with router.open() as stream:
            await router.follow(stream, lambda: bool(router.loads))
            patient.load = LoadReport(is_serving=False, is_draining=True)
            patient.feed.report_now()
            await router.follow(stream, lambda: len(router.loads) == 2)
    assert [(load.serving, load.draining) for load in router.loads] == [
        (True, False),
        (False, True),
    ]


def reports(worker: Worker, *, for_s: float) -> list[tuple[float, worker_pb2.LoadReport]]:
    """With when each came, in virtual time."""
    told: list[tuple[float, worker_pb2.LoadReport]] = []

    async def watch() -> None:
        loop = asyncio.get_running_loop()

        async def send(message: Any) -> None:
            if message.WhichOneof("report") == "load":
                told.append((round(loop.time(), 6), message.load))

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(for_s):
                await worker.feed.watch(worker_pb2.WatchRequest(), send)

    virtual_loop.run(watch())
    return told


def test_a_worker_at_rest_says_half_as_often_that_nothing_has_changed():
    told = reports(Worker(interval_s=0.25), for_s=2.1)
    assert [at_s for at_s, _ in told] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert [load.pairs_left_out for _, load in told] == [False, True, False, True, False]


def test_what_changes_is_told_at_the_next_look():
    worker = Worker(interval_s=0.25)
    numbers = iter([1, 1, 2, 3, 3, 3, 4])
    worker.feed = WatchFeed(
        worker.log, lambda: LoadReport(num_running=next(numbers)), report_interval_s=0.25
    )
    told = reports(worker, for_s=1.6)
    assert [at_s for at_s, _ in told] == [0.0, 0.5, 0.75, 1.25, 1.5]
    assert [load.num_running for _, load in told] == [1, 2, 3, 3, 4]
    assert [load.pairs_left_out for _, load in told] == [False, True, True, False, True]


def test_who_is_admitted_once_more_under_the_same_load_is_told_once_more():
    worker = Worker()

    def load() -> LoadReport:
        worker.feed.admitted("again")  # it is told at the next look
        return LoadReport(num_running=1)

    worker.feed = WatchFeed(worker.log, load, report_interval_s=0.25)
    told = reports(worker, for_s=0.8)
    assert [list(load.request_ids) for _, load in told] == [[], ["again"], ["again"], ["again"]]


async def test_every_router_is_told_of_every_admitted_request_once():
    worker = Worker()
    async with worker.serve() as channel:
        one, other = Router(channel), Router(channel)
        async with one.open() as first, other.open() as second:
            streams = ((one, first), (other, second))
            for router, stream in streams:
                await router.follow(stream, lambda router=router: bool(router.loads))
            for number in (2, 3):
                worker.feed.admitted(f"request-{number}")
                worker.feed.report_now()
                for router, stream in streams:
                    await router.follow(
                        stream, lambda router=router, number=number: len(router.loads) == number
                    )
    for router in (one, other):
        told = [list(load.request_ids) for load in router.loads]
        assert told == [[], ["request-2"], ["request-3"]]


async def test_a_router_that_comes_back_is_told_of_the_requests_admitted_meanwhile():
    worker = Worker()
    worker.feed.admitted("meanwhile")
    async with worker.serve() as channel:
        router = Router(channel)
        async with router.open() as stream:
            await router.follow(stream, lambda: bool(router.loads))
    assert list(router.loads[0].request_ids) == ["meanwhile"]
