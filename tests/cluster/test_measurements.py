"""Times that one process took serve the next, unless the machine was busy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import host, measurements
from cluster.measurements import MAX_TAKES, Measurements, Timings


class Stopwatch:
    """Gives what it is told to, and counts."""

    def __init__(self, *takes: Timings) -> None:
        self._takes = takes
        self.num = 0

    def __call__(self) -> Timings:
        self.num += 1
        return self._takes[min(self.num, len(self._takes)) - 1]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the process had waited for a processor, look by look; empty: not at all."""
    found: list[float] = []
    monkeypatch.setattr(host, "waited_s", lambda: found.pop(0) if found else 0.0)
    return found


QUICK: Timings = {"a": [1.0, 2.0], "b": [3.0, 1.0]}


def test_a_take_serves_the_next_process(tmp_path: Path, waits: list[float]) -> None:
    watch = Stopwatch(QUICK)
    for _ in range(3):
        take = Measurements(tmp_path / "made").take("copies", watch)
        assert take.seconds == QUICK
        assert take.is_final
    assert watch.num == 1
    assert (tmp_path / "made").stat().st_mode & 0o077 == 0


def test_one_under_load_is_taken_again_and_joined(tmp_path: Path, waits: list[float]) -> None:
    watch = Stopwatch({"a": [5.0, 2.0], "b": [3.0, 9.0]}, {"a": [1.0, 4.0], "b": [4.0, 1.0]})
    waits += [0.0, 10.0, 0.0, 0.0]
    assert not Measurements(tmp_path).take("copies", watch).is_final
    take = Measurements(tmp_path).take("copies", watch)
    assert take.is_final
    assert take.seconds == QUICK
    assert Measurements(tmp_path).take("copies", watch).seconds == QUICK
    assert watch.num == 2


def test_a_machine_that_is_always_busy_is_timed_so_often_only(
    tmp_path: Path, waits: list[float]
) -> None:
    watch = Stopwatch(QUICK)
    waits += [float(look) for look in range(100)]
    for _ in range(MAX_TAKES + 3):
        Measurements(tmp_path).take("copies", watch)
    assert watch.num == MAX_TAKES


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"\xff{",
        b'{"copies": 3}',
        b'{"copies": {"seconds": {"a": [-1]}, "num_takes": 1, "was_quiet": true}}',
        b'{"copies": {"seconds": {"a": []}, "num_takes": 1, "was_quiet": true}}',
    ],
)
def test_a_file_that_is_not_ours_is_replaced(
    tmp_path: Path, waits: list[float], text: bytes
) -> None:
    watch = Stopwatch(QUICK)
    Measurements(tmp_path).take("copies", watch)
    [path] = tmp_path.glob("*.json")
    path.write_bytes(text)
    for _ in range(2):
        assert Measurements(tmp_path).take("copies", watch).seconds == QUICK
    assert watch.num == 2


def test_where_nothing_can_be_kept_each_process_takes_its_own(
    tmp_path: Path, waits: list[float]
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for folder in (None, file / "below"):
        watch, here = Stopwatch(QUICK), Measurements(folder)
        assert here.take("copies", watch).seconds == here.take("copies", watch).seconds == QUICK
        assert watch.num == 1


def test_another_processor_has_its_own(
    tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Stopwatch(QUICK)
    for name in ("one", "another", "one"):
        monkeypatch.setattr(host, "processor", lambda name=name: name)
        Measurements(tmp_path).take("copies", watch)
    assert watch.num == 2


def test_one_that_holds_its_turn_for_too_long_is_not_waited_for(
    tmp_path: Path, waits: list[float]
) -> None:
    holder = Measurements(tmp_path)

    def measure() -> Timings:
        return Measurements(tmp_path).take("copies", Stopwatch(QUICK), turn_s=0.05).seconds

    assert holder.take("copies", measure).seconds == QUICK


BURNING = """
import sys, time
from cluster import host
before, began = host.waited_s(), time.perf_counter()
while time.perf_counter() - began < 0.4:
    pass
print(host.waited_s() - before)
"""


@pytest.mark.slow
def test_a_process_that_shares_its_core_sees_that_it_waits() -> None:
    core = {min(os.sched_getaffinity(0))}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", BURNING],
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, core),
        )

    waited = [float(one.communicate()[0]) for one in [start(), start()]]
    assert max(waited) > measurements.MAX_WAITED * 0.4
