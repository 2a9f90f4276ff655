"""Which of several unwell processes is frozen: by the table, and by real processes."""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.health import HealthState
from cluster.rpc import Server
from cluster.secrets import create_secrets
from deploy.frozen import Ailment, Scrutiny, fault_of, until_frozen
from deploy.plan import Part, ProcessPlan
from deploy.process_state import (
    Condition,
    ThreadVitals,
    Vitals,
    condition,
    read_vitals,
)
from deploy.vitals import Health
from tests.redis_server import free_port

LIMITS = {
    Ailment.STOPPED: 2.0,
    Ailment.IDLE: 2.0,
    Ailment.WEDGED: 0.5,
    Ailment.SILENT: 10.0,
    Ailment.UNREADY: 120.0,
}
STOPPED = Vitals("T", False, {})
LOOK_S = 0.25


def thread(state: str = "S", ran_s: float = 0.0, waited_s: float = 0.0) -> Vitals:
    return Vitals(state, False, {1: ThreadVitals(state, ran_s, waited_s)})


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (thread(), thread(), Condition.IDLE),
        (thread(), thread(ran_s=0.01), Condition.IDLE),  # gRPC's threads wake up now and then
        (thread(), thread("R", ran_s=1.0), Condition.AT_WORK),
        (thread(), thread("R", ran_s=0.4, waited_s=0.6), Condition.STARVED),
        (thread(), thread("R", ran_s=0.6, waited_s=0.4), Condition.AT_WORK),  # it got its half
        (thread(), thread("S", ran_s=0.01, waited_s=0.05), Condition.IDLE),
        # A wait that has not ended is not counted yet: it shows in the state, at both looks.
        (thread("R"), thread("R"), Condition.STARVED),
        (thread("S"), thread("R"), Condition.IDLE),
        (thread(), thread("D"), Condition.STARVED),
        (thread(), STOPPED, Condition.STOPPED),
        (thread("R"), Vitals("t", True, {}), Condition.TRACED),
        (thread(), Vitals("T", True, {}), Condition.TRACED),
        (None, thread(), Condition.UNSEEN),
        (thread(), None, Condition.UNSEEN),
    ],
)
def test_what_two_looks_say(before: Vitals | None, now: Vitals | None, expected: Condition) -> None:
    assert condition(before, now, 1.0) is expected


@pytest.mark.parametrize("answer", Health)
@pytest.mark.parametrize("seen", [Condition.STARVED, Condition.TRACED, Condition.UNSEEN])
def test_one_that_cannot_help_it_is_excused_whatever_it_says(
    answer: Health, seen: Condition
) -> None:
    assert fault_of(answer, seen) is None


@pytest.mark.parametrize(
    ("answer", "seen", "expected"),
    [
        (Health.WELL, Condition.IDLE, None),
        (Health.WELL, Condition.STOPPED, Ailment.STOPPED),  # the answer is from before
        (Health.WEDGED, Condition.AT_WORK, Ailment.WEDGED),  # a step that never ends
        (Health.WEDGED, Condition.IDLE, Ailment.WEDGED),
        (Health.SILENT, Condition.IDLE, Ailment.IDLE),
        (Health.SILENT, Condition.AT_WORK, Ailment.SILENT),
        (Health.STARTING, Condition.IDLE, Ailment.UNREADY),
        (Health.STARTING, Condition.STOPPED, Ailment.STOPPED),
    ],
)
def test_one_moment_is_judged(answer: Health, seen: Condition, expected: Ailment | None) -> None:
    assert fault_of(answer, seen) is expected


class Observed:
    """One process under scrutiny, in steps of a look."""

    def __init__(self) -> None:
        self.now = 100.0
        self._scrutiny = Scrutiny(LIMITS)
        self.see(Health.WELL, thread())

    def see(
        self, answer: Health, vitals: Vitals | None, *, after_s: float = LOOK_S
    ) -> Ailment | None:
        self.now += after_s
        return self._scrutiny.look(answer, vitals, self.now)

    def until_frozen(self, answer: Health, vitals: Vitals) -> float:
        began = self.now
        while self.see(answer, vitals) is None:
            assert self.now - began < 200
        return self.now - began


@pytest.mark.parametrize(
    ("answer", "vitals", "limit_s"),
    [
        (Health.WELL, STOPPED, 2.0),
        (Health.SILENT, thread(), 2.0),
        (Health.WEDGED, thread(), 0.5),
        (Health.STARTING, thread(), 120.0),
    ],
)
def test_each_fault_has_its_limit(answer: Health, vitals: Vitals, limit_s: float) -> None:
    observed = Observed()
    assert limit_s <= observed.until_frozen(answer, vitals) <= limit_s + 2 * LOOK_S


def test_a_process_that_is_continued_in_time_is_forgiven() -> None:
    observed = Observed()
    for _ in range(3):
        assert not any(observed.see(Health.SILENT, STOPPED) for _ in range(8))
        assert observed.see(Health.WELL, thread()) is None


def test_seconds_of_starvation_are_never_counted() -> None:
    observed = Observed()
    for at in range(1000):
        waits = thread("R", ran_s=0.01 * at, waited_s=0.2 * at)
        assert observed.see(Health.WEDGED, waits) is None


def test_an_observer_that_was_away_blames_nobody() -> None:
    """Its clock stands still meanwhile, and until it has heard what came."""
    observed = Observed()
    assert not any(observed.see(Health.SILENT, STOPPED) for _ in range(4))
    assert not any(observed.see(Health.SILENT, thread(), after_s=0) for _ in range(100))
    assert observed.see(Health.WELL, thread()) is None


@contextmanager
def running(code: str) -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-c", f"print(flush=True)\n{code}"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


SLEEPS = "import time; time.sleep(60)"
SPINS = "import time; end = time.time() + 20\nwhile time.time() < end: pass"


def seen(pid: int, seconds: float = 0.4) -> Condition:
    """Compares two looks, after a while in which the scheduler has its turn."""
    before = read_vitals(pid)
    time.sleep(seconds)
    return condition(before, read_vitals(pid), seconds)


@pytest.mark.slow
def test_real_processes_are_told_apart() -> None:
    with running(SLEEPS) as pid:
        assert seen(pid) is Condition.IDLE
        os.kill(pid, signal.SIGSTOP)
        assert seen(pid) is Condition.STOPPED
        os.kill(pid, signal.SIGCONT)
        assert seen(pid) is Condition.IDLE
    assert seen(pid, 0) is Condition.UNSEEN


@pytest.mark.alone
@pytest.mark.slow
def test_a_process_that_gets_no_processor_is_starved() -> None:
    """Only real contention shows it: here by niceness, on the one processor of all of them."""
    cpu = min(os.sched_getaffinity(0))
    pinned = f"import os; os.sched_setaffinity(0, [{cpu}])\n"
    with running(pinned + SPINS), running(pinned + SPINS), running(pinned + SPINS) as pid:
        assert seen(pid, 1.0) is Condition.STARVED
        # One that asks for nothing is not: it has what it wants.
        with running(pinned + SLEEPS) as idle:
            assert seen(idle, 1.0) is Condition.IDLE


@pytest.mark.slow
def test_a_process_in_a_debugger_is_a_persons() -> None:
    seize, interrupt, libc = 0x4206, 0x4207, ctypes.CDLL(None, use_errno=True)
    with running(SLEEPS) as pid:
        if libc.ptrace(seize, pid, None, None) != 0:
            pytest.skip(f"no tracing here: {os.strerror(ctypes.get_errno())}")
        libc.ptrace(interrupt, pid, None, None)
        assert seen(pid) is Condition.TRACED


def test_a_process_is_read_without_its_threads_or_not_at_all() -> None:
    vitals = read_vitals(os.getpid(), in_detail=False)
    assert vitals is not None
    assert vitals.threads == {}
    assert read_vitals(2**22 + 1) is None  # above what a pid may be


@pytest.mark.slow
@pytest.mark.parametrize("is_well", [True, False])
async def test_a_router_that_drains_is_asked_where_it_still_answers(
    tmp_path: Path, is_well: bool
) -> None:
    """It has closed its front door."""
    secrets_file = tmp_path / "secrets.yaml"
    create_secrets(secrets_file)
    closed = f"127.0.0.1:{free_port()}"
    limits = dict.fromkeys(Ailment, 0.4)
    with running(SLEEPS) as pid:
        async with Server([], health=HealthState()) as server:
            child: Any = SimpleNamespace(
                plan=ProcessPlan(
                    name="router",
                    part=Part.ROUTER,
                    command=(),
                    config={"secrets_file": str(secrets_file)},
                ),
                ready={"address": closed, "internal": server.address if is_well else closed},
                address=closed,
                pid=pid,
            )
            looking = asyncio.create_task(until_frozen(child, limits))
            await asyncio.wait({looking}, timeout=2.0 if is_well else 30.0)
            assert looking.done() is not is_well
            looking.cancel()
