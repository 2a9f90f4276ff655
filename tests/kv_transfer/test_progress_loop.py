"""Polled work: in order in a lane, lanes side by side, and what ends it."""

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest

from cluster.errors import TransferFailed
from kv_transfer.nixl import progress_loop
from kv_transfer.nixl.progress_loop import ProgressLoop, Steps
from kv_transfer.transport import WriteRefused


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProgressLoop]:
    monkeypatch.setattr(progress_loop, "CLOSE_S", 0.01)
    loop = ProgressLoop("under-test", progress=lambda: None, idle_s=lambda: 60.0)
    yield loop
    loop.close()


def until(event: threading.Event, told: list[str], name: str) -> Steps[str]:
    told.append(f"{name} begins")
    try:
        while not event.is_set():
            yield
    finally:
        told.append(f"{name} ends")
    return name


def test_a_lane_is_in_order_and_holds_up_no_other(loop: ProgressLoop) -> None:
    first, other = threading.Event(), threading.Event()
    told: list[str] = []
    waiting = [loop.submit("slow", until(first, told, name)) for name in ("one", "two")]
    other.set()
    assert loop.submit("fast", until(other, told, "fast")).result(10) == "fast"
    assert told == ["one begins", "fast begins", "fast ends"]
    first.set()
    assert [future.result(10) for future in waiting] == ["one", "two"]
    assert told[3:] == ["one ends", "two begins", "two ends"]


def test_what_has_not_begun_is_cancelled_and_what_has_is_not(loop: ProgressLoop) -> None:
    never = threading.Event()
    told: list[str] = []
    one, two, three = (loop.submit("a", until(never, told, name)) for name in ("1", "2", "3"))
    loop.submit("b", iter_once()).result(10)
    assert two.cancel()
    assert not one.cancel()
    never.set()
    assert three.result(10) == "3"
    assert "2 begins" not in told


def test_a_lane_that_fails_ends_all_its_work_and_no_other(loop: ProgressLoop) -> None:
    never = threading.Event()
    told: list[str] = []
    lost = [loop.submit("lost", until(never, told, name)) for name in ("1", "2")]
    kept = loop.submit("kept", until(never, told, "kept"))
    loop.submit("now", iter_once()).result(10)
    loop.fail("lost", TransferFailed("It is gone."))
    for future in lost:
        with pytest.raises(TransferFailed, match="gone"):
            future.result(10)
    assert "1 ends" in told, "it could clean up"
    assert "2 begins" not in told
    never.set()
    assert kept.result(10) == "kept"


def test_work_that_raises_is_its_own_trouble(loop: ProgressLoop) -> None:
    def raises() -> Steps[None]:
        yield
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        loop.submit("a", raises()).result(10)
    loop.submit("a", iter_once()).result(10)


def test_closing_waits_for_nothing_that_stands_still(loop: ProgressLoop) -> None:
    never = threading.Event()
    told: list[str] = []
    held, behind = (loop.submit("a", until(never, told, name)) for name in ("1", "2"))
    loop.submit("b", iter_once()).result(10)
    loop.close()
    with pytest.raises(TransferFailed, match="closed"):
        held.result(0)
    with pytest.raises(CancelledError):
        behind.result(0)
    with pytest.raises(WriteRefused):
        loop.submit("a", iter_once()).result(0)
    assert told == ["1 begins", "1 ends"]


def iter_once() -> Steps[None]:
    yield
