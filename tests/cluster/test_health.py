"""Health as a probe and a router see it, and when a worker counts as stuck."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.health import HealthState, ProgressMonitor, follow_progress
from cluster.lateness import LOOK_S, AttentiveClock
from cluster.rpc import Server

SERVICE = "penstock.v1.Decode"
Status = health_pb2.HealthCheckResponse


@pytest.fixture
def state() -> HealthState:
    return HealthState([SERVICE])


@pytest.fixture
async def stub(state: HealthState) -> AsyncIterator[Any]:
    async with (
        Server([], health=state) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield health_pb2_grpc.HealthStub(channel)


def ask(service: str = "") -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


async def test_a_process_serves_only_when_it_says_so(state: HealthState, stub: Any):
    assert (await stub.Check(ask())).status == Status.NOT_SERVING
    state.set_all(True)
    assert (await stub.Check(ask())).status == Status.SERVING
    assert (await stub.Check(ask(SERVICE))).status == Status.SERVING
    state.set(SERVICE, False)
    assert (await stub.Check(ask(SERVICE))).status == Status.NOT_SERVING
    assert (await stub.Check(ask())).status == Status.SERVING


async def test_check_of_an_unknown_service_is_not_found_and_names_the_known(stub: Any):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.Check(ask("penstock.v1.Nothing"))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    assert SERVICE in raised.value.details()


async def test_watch_sends_the_state_at_once_and_every_change(state: HealthState, stub: Any):
    watch = stub.Watch(ask(SERVICE))
    for serving, status in ((None, Status.NOT_SERVING), (True, Status.SERVING)) * 2:
        state.set(SERVICE, bool(serving))
        assert (await watch.read()).status == status
    watch.cancel()


async def test_watch_of_an_unknown_service_streams_on_until_it_is_known(
    state: HealthState, stub: Any
):
    watch = stub.Watch(ask("later"))
    assert (await watch.read()).status == Status.SERVICE_UNKNOWN
    state.set("later", True)
    assert (await watch.read()).status == Status.SERVING
    watch.cancel()


async def test_one_watcher_that_leaves_takes_nothing_from_the_other(state: HealthState):
    first: asyncio.Queue[bool | None] = asyncio.Queue()
    second: asyncio.Queue[bool | None] = asyncio.Queue()
    leaver = asyncio.create_task(state.watch("", first.put))
    stayer = asyncio.create_task(state.watch("", second.put))
    assert [await first.get(), await second.get()] == [False, False]
    leaver.cancel()
    await asyncio.wait([leaver])
    state.set("", True)
    assert await second.get() is True
    stayer.cancel()
    await asyncio.wait([stayer])


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def monitor(clock: Clock) -> ProgressMonitor:
    return ProgressMonitor(clock=clock)


def test_an_idle_worker_is_never_stale(monitor: ProgressMonitor, clock: Clock):
    clock.now = 1e6
    assert not monitor.is_stale()


@pytest.mark.parametrize(("predicted_s", "limit_s"), [(0.0, 2.0), (0.25, 2.0), (1.0, 4.0)])
def test_a_step_is_stale_after_two_seconds_or_four_times_its_prediction(
    monitor: ProgressMonitor, clock: Clock, predicted_s: float, limit_s: float
):
    monitor.begin_step(predicted_s)
    clock.now = limit_s
    assert not monitor.is_stale()
    clock.now = limit_s + 0.01
    assert monitor.is_stale()
    assert monitor.step_age_s == pytest.approx(limit_s + 0.01)
    monitor.end_step()
    assert not monitor.is_stale()
    assert monitor.step_age_s == 0.0


def test_a_busy_worker_whose_steps_end_is_not_stale(monitor: ProgressMonitor, clock: Clock):
    monitor.set_waiting(True)
    for _ in range(100):
        monitor.begin_step(0.5)
        clock.now += 1.9
        assert not monitor.is_stale()
        monitor.end_step()
        clock.now += 1.9
        assert not monitor.is_stale()


def test_work_that_waits_while_no_step_begins_is_stale(monitor: ProgressMonitor, clock: Clock):
    monitor.set_waiting(True)
    clock.now = 1.9
    monitor.set_waiting(True)  # more work does not start the time anew
    clock.now = 2.1
    assert monitor.is_stale()
    monitor.set_waiting(False)
    assert not monitor.is_stale()


def test_a_process_that_was_stopped_does_not_call_its_own_step_stale(clock: Clock):
    monitor = ProgressMonitor(clock=AttentiveClock(clock).now)

    def live(seconds: float) -> bool:
        for _ in range(round(seconds / LOOK_S)):
            clock.now += LOOK_S
            is_stale = monitor.is_stale()
        return is_stale

    for begin in (lambda: monitor.begin_step(0.1), lambda: monitor.set_waiting(True)):
        monitor.end_step()
        begin()
        assert not live(1.0)
        clock.now += 10.0
        assert not monitor.is_stale()
        assert not live(0.5)
        assert live(1.5)


async def test_a_wedged_engine_with_a_live_event_loop_reports_itself(
    state: HealthState, stub: Any, monitor: ProgressMonitor, clock: Clock
):
    watch = stub.Watch(ask())
    async with asyncio.TaskGroup() as tasks:
        follower = tasks.create_task(
            follow_progress(state, lambda: not monitor.is_stale(), interval_s=0.01)
        )
        while (await watch.read()).status != Status.SERVING:
            pass
        monitor.begin_step(0.1)
        clock.now = 2.1
        assert (await watch.read()).status == Status.NOT_SERVING
        monitor.end_step()
        assert (await watch.read()).status == Status.SERVING
        follower.cancel()
    watch.cancel()
