"""What a supervisor does to processes that are late, frozen or dead, and what it does when a step
of its own fails. The processes are real, most of them stand-ins."""

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

import deploy.child
import deploy.frozen
import deploy.launcher
import deploy.supervisor
from cluster.errors import SupervisionError
from deploy.child import Child
from deploy.launcher import LocalCluster, Supervision
from deploy.plan import ClusterPlan, Part
from deploy.supervisor import Backoff
from tests.burnt_cores import burnt_cores

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

FAKE = (sys.executable, str(Path(__file__).with_name("fake_process.py")))
LAUNCHER = (sys.executable, str(Path(__file__).with_name("launcher_process.py")))
QUICK = Supervision(ready_s=60, stop_s=0.5, first_backoff_s=0.01, last_backoff_s=0.1)


class Told:
    """Listens to a cluster."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._news = asyncio.Event()

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        self._news.set()

    async def until(self, part: str, *, within_s: float = 30) -> None:
        async with asyncio.timeout(within_s):
            while not any(part in line for line in self.lines):
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def supervised(
    folder: Path, told: Told, *, times: Supervision = QUICK, **worker: Any
) -> AsyncIterator[LocalCluster]:
    journal = {"journal": str(folder / "journal")}
    plan = ClusterPlan(
        checkpoint=folder,
        commands=dict.fromkeys(Part, FAKE),
        num_prefill=0,
        router=journal,
        worker={**journal, **worker},
        drain_s=5.0,
    )
    async with LocalCluster(plan, supervision=times, say=told, run_dir_parent=folder) as cluster:
        told.lines.clear()
        yield cluster


def starving(at_most_s: float) -> contextlib.AbstractContextManager[None]:
    """What is beside it gets a ninth of what it asks for."""
    return burnt_cores(at_most_s, num_per_core=8, own_sessions=True)


@pytest.mark.alone
async def test_a_stopped_worker_is_replaced_within_five_seconds(tmp_path: Path) -> None:
    told = Told()
    async with supervised(tmp_path, told, times=Supervision()) as cluster:
        began = time.monotonic()
        os.kill(cluster.children["decode-0"].pid, signal.SIGSTOP)
        await told.until("decode-0 is ready")
    assert 2.5 <= time.monotonic() - began < 5.0
    assert any("it was stopped" in line for line in told.lines)


async def test_a_wedged_worker_is_replaced_though_it_spins(tmp_path: Path) -> None:
    told = Told()
    async with supervised(tmp_path, told, times=Supervision(), fault="spins") as cluster:
        old = cluster.children["decode-0"]
        await told.until("decode-0 did not serve")  # when this machine leaves it a processor
        assert not old.is_running
    assert any("its steps do not end" in line for line in told.lines)


async def test_a_worker_that_drains_is_left_alone(tmp_path: Path) -> None:
    """NOT_SERVING by its own word, and its steps end: somebody sent it a SIGTERM."""
    told = Told()
    async with supervised(tmp_path, told, times=Supervision(wedged_s=0.2), fault="drains"):
        with pytest.raises(TimeoutError):
            await told.until("decode-0", within_s=2)


@pytest.mark.alone
async def test_a_worker_that_is_continued_in_time_lives_on(tmp_path: Path) -> None:
    told = Told()
    async with supervised(tmp_path, told, times=Supervision(stopped_s=1.0)) as cluster:
        pid = cluster.children["decode-0"].pid
        for _ in range(2):
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(0.6)  # how long it is stopped is what is tried
            os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(0.7)
        assert told.lines == []


async def test_a_stopped_router_has_a_patience_of_its_own(tmp_path: Path) -> None:
    told, times = Told(), Supervision(frozen_s=3.0, stopped_s=0.4)
    async with supervised(tmp_path, told, times=times) as cluster:
        began = time.monotonic()
        for child in cluster.children.values():
            os.kill(child.pid, signal.SIGSTOP)
        await told.until("decode-0 did not serve")
        assert not any("router" in line for line in told.lines)
        await told.until("router did not serve for 3 s")
        assert time.monotonic() - began >= 3.0


@pytest.mark.prove
async def test_a_starved_worker_is_never_killed_whatever_it_says(tmp_path: Path) -> None:
    """Eight competitors a core leave it a ninth. Alone it is wedged, by its own word."""
    told, times = Told(), Supervision(wedged_s=0.5, stopped_s=0.5, frozen_s=1.0)
    with starving(60):
        async with supervised(tmp_path, told, times=times, fault="spins") as cluster:
            with pytest.raises(TimeoutError):
                await told.until("did not serve", within_s=4)
            assert cluster.num_restarts == 0


@pytest.mark.prove
@pytest.mark.alone
async def test_a_stopped_worker_is_replaced_beside_burnt_cores(tmp_path: Path) -> None:
    told = Told()
    with starving(60):
        async with supervised(tmp_path, told) as cluster:
            os.kill(cluster.children["decode-0"].pid, signal.SIGSTOP)
            await told.until("decode-0 is ready")
            assert cluster.num_restarts == 1


@pytest.mark.prove
async def test_a_process_that_is_stopped_while_it_starts_is_given_up(tmp_path: Path) -> None:
    told = Told()
    async with supervised(tmp_path, told) as cluster:
        pids = born()
        cluster.children["decode-0"].kill()
        async with asyncio.timeout(30):
            while not (fresh := born() - pids):  # noqa: ASYNC110
                await asyncio.sleep(0.005)  # nothing tells of it before it is ready
        os.kill(fresh.pop(), signal.SIGSTOP)
        await told.until("was not ready within 2.5 s: it was stopped")
        await told.until("decode-0 is ready")


def born() -> set[int]:
    """Every process that this one has started and that nobody has waited for."""
    text = "".join(path.read_text() for path in Path("/proc/self/task").glob("*/children"))
    return set(map(int, text.split()))


class Supervising:
    """A launcher of stand-ins in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def until(self, part: str, *, count: int = 1, within_s: float = 60) -> bool:
        with self._news:
            return self._news.wait_for(
                lambda: sum(part in line for line in self.lines) >= count, within_s
            )

    def pid(self, name: str) -> int:
        (last,) = [line for line in self.lines if line.startswith(f"{name} is ready")][-1:]
        return int(last.rpartition("pid ")[2].rstrip(")\n"))

    def _listen(self) -> None:
        for line in self.process.stdout or ():
            with self._news:
                self.lines.append(line)
                self._news.notify_all()


@contextmanager
def launcher_process(folder: Path, frozen_s: float) -> Iterator[Supervising]:
    process = subprocess.Popen(
        [*LAUNCHER, str(folder), str(frozen_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    supervising = Supervising(process)
    try:
        assert supervising.until("supervising"), supervising.lines
        yield supervising
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()
            supervising._listener.join(10)
            if process.stdout:
                process.stdout.close()


@pytest.mark.alone
@pytest.mark.parametrize(
    "busy", [False, pytest.param(True, marks=pytest.mark.prove)], ids=["quiet", "burnt"]
)
def test_a_stopped_supervisor_kills_nothing_when_it_goes_on(tmp_path: Path, busy: bool) -> None:
    """As Ctrl-Z and `fg`: four times the patience it has with others."""
    with launcher_process(tmp_path, 0.5) as launcher:
        with starving(30) if busy else contextlib.nullcontext():
            os.kill(launcher.process.pid, signal.SIGSTOP)
            time.sleep(2)  # how long it is stopped is what is tried
            os.kill(launcher.process.pid, signal.SIGCONT)
            assert not launcher.until("starting it again", within_s=1.5), launcher.lines
        os.kill(launcher.pid("decode-0"), signal.SIGKILL)  # and it still does its work
        assert launcher.until("decode-0 is ready", count=2), launcher.lines


def test_a_supervisor_without_files_goes_on_when_it_has_some(tmp_path: Path) -> None:
    with launcher_process(tmp_path, 10.0) as launcher:
        pid = launcher.process.pid
        _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        os.kill(launcher.pid("decode-0"), signal.SIGKILL)
        assert launcher.until("decode-0 is ready", count=2), launcher.lines
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, most))
        os.kill(launcher.pid("decode-0"), signal.SIGKILL)
        assert launcher.until("Trying again", count=3), launcher.lines
        assert not any("killed" in line for line in launcher.lines), launcher.lines
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))
        assert launcher.until("decode-0 is ready", count=3), launcher.lines


def failing(real: Callable[..., Any], error: BaseException, times: int = 2) -> Any:
    """Stands for a function or a method, and fails a number of times before it does its work."""
    loop, called = asyncio.get_running_loop(), asyncio.Event()

    def fail(*arguments: Any, **options: Any) -> Any:
        loop.call_soon_threadsafe(called.set)
        fail.num_calls += 1  # type: ignore[attr-defined]
        if fail.num_calls <= times:  # type: ignore[attr-defined]
            raise error
        return real(*arguments, **options)

    fail.num_calls = 0  # type: ignore[attr-defined]
    fail.called = called  # type: ignore[attr-defined]
    return fail


STEPS = {
    "configuration": (deploy.child, "_write_config"),
    "log": (deploy.child, "_open_log"),
    "folder of logs": (Path, "mkdir"),
    "fork": (subprocess, "Popen"),
    "pidfd": (os, "pidfd_open"),
    "pipe": (asyncio.StreamReaderProtocol, "__init__"),
    "ready line": (Child, "_ready_line"),
    "reading": (asyncio.StreamReader, "readline"),
    "start": (deploy.launcher, "start"),
    "watching a start": (deploy.supervisor, "until_given_up"),
    "watching": (deploy.supervisor, "until_frozen"),
    "health": (deploy.frozen, "health_channel"),
    "looking": (deploy.frozen, "read_vitals"),
    "judging": (deploy.frozen.Scrutiny, "look"),
    "stopping": (Child, "stop"),
    "sweep": (deploy.supervisor.Supervisor, "_bury"),
    "tail": (deploy.supervisor, "tail"),
}


@pytest.mark.parametrize(
    "error",
    [
        OSError(24, "Too many open files"),
        pytest.param(RuntimeError("a bug"), marks=pytest.mark.prove),
    ],
)
async def test_whatever_fails_in_a_restart_the_part_comes_back(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step after step in one cluster: that it is supervised as before is what the next one asks."""
    told, others = Told(), born()
    async with supervised(tmp_path, told) as cluster:
        for step, (owner, name) in STEPS.items():
            if step == "sweep":
                owner, name = cluster._supervisors[-1], "_bury"
            old, told.lines[:] = cluster.children["decode-0"], ()
            with monkeypatch.context() as patch:
                step_fails = failing(getattr(owner, name), error)
                patch.setattr(owner, name, step_fails)
                os.kill(old.pid, signal.SIGKILL)
                async with asyncio.timeout(30):
                    await step_fails.called.wait()
                await told.until("decode-0 is ready")
            fresh = cluster.children["decode-0"]
            assert fresh.is_running, step
            assert fresh.pid != old.pid, step
            assert born() - others == {child.pid for child in cluster.children.values()}, step
        told.lines.clear()
        fresh.kill()
        await told.until("decode-0 is ready")


async def test_a_kill_that_fails_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, times = Told(), Supervision(stopped_s=0.4, first_backoff_s=0.01)
    async with supervised(tmp_path, told, times=times) as cluster:
        old = cluster.children["decode-0"]
        kill = failing(old.kill, PermissionError(1, "Operation not permitted"))
        monkeypatch.setattr(old, "kill", kill)
        os.kill(old.pid, signal.SIGSTOP)
        await told.until("decode-0 is ready")
    assert kill.num_calls > 2


async def test_a_part_that_cannot_start_is_tried_for_ever_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    async with supervised(tmp_path, told) as cluster:
        fork = failing(subprocess.Popen, OSError(11, "Resource temporarily unavailable"), times=20)
        monkeypatch.setattr(subprocess, "Popen", fork)
        cluster.children["decode-0"].kill()
        await told.until("decode-0 is ready")
    assert fork.num_calls == 21
    said = [line for line in told.lines if "Resource temporarily unavailable" in line]
    assert len(said) == 20
    assert "Trying again in 0.1 s" in said[-1]


async def test_a_part_that_dies_again_and_again_is_said_loudly(tmp_path: Path) -> None:
    told = Told()
    async with supervised(tmp_path, told) as cluster:
        for _ in range(3):
            told.lines.clear()
            cluster.children["decode-0"].kill()
            await told.until("decode-0 is ready")
        assert any("decode-0 DIES AGAIN AND AGAIN: 3 times within" in line for line in told.lines)


def test_backoff_doubles_until_a_life_is_long_beside_it() -> None:
    backoff = Backoff(0.1, 30.0)
    assert [backoff.take() for _ in range(4)] == [0.1, 0.2, 0.4, 0.8]
    backoff.lived(10.0)
    assert backoff.take() == 1.6
    backoff.lived(31.0)
    assert [backoff.take(), backoff.take()] == [0.1, 0.2]
    backoff.lived(5.0)
    assert backoff.take() == 0.1


async def test_a_listener_that_fails_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told()
    async with supervised(tmp_path, told) as cluster:
        cluster._listener = failing(told, BrokenPipeError(32, "Broken pipe"), times=1)
        cluster.children["decode-0"].kill()
        await told.until("decode-0 is ready")
    assert "nobody heard: decode-0 ended" in caplog.text


@pytest.mark.parametrize("is_waiting", [True, False])
async def test_a_supervisor_that_ends_ends_the_cluster_in_order(
    tmp_path: Path, is_waiting: bool
) -> None:
    pids: set[int] = set()
    with pytest.raises(SupervisionError, match="nothing that dies would be st"):  # noqa: PT012
        async with supervised(tmp_path, Told()) as cluster:
            pids |= {child.pid for child in cluster.children.values()}
            cluster._tasks[0].cancel()
            await asyncio.sleep(0)
            if is_waiting:
                await cluster.supervise(until=asyncio.Event().wait())
    assert (tmp_path / "journal").read_text().split() == ["router", "decode-0"]  # drained
    assert not pids & born()


@pytest.mark.prove
async def test_a_late_launcher_hears_a_process_that_was_ready_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts two and is away for longer than it would wait: both were ready long ago."""
    real = deploy.child._popen

    def slow(*arguments: Any) -> Any:
        process = real(*arguments)
        time.sleep(2.5)  # the loop stands still, as if stopped
        return process

    monkeypatch.setattr(deploy.child, "_popen", slow)
    times = Supervision(ready_s=2.0, stop_s=0.5)
    async with supervised(tmp_path, Told(), times=times) as cluster:
        assert len(cluster.children) == 2
