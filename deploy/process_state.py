"""Reads what a process of this machine shows of itself without being asked: whether it is stopped,
traced, waiting for a processor or a disk, idle or at work. Reads /proc; judges nothing."""

import os
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
NANOSECONDS_PER_S = 1e9
# A thread that waited for so much of the time, and longer than it ran, is held up by others. One
# that got half of what it asked for is not: steps are allowed four times their predicted time.
MIN_WAITED = 0.2
# Wake-ups of gRPC's own threads stay far below; a loop that spins is far above.
MAX_IDLE = 0.05


class Condition(StrEnum):
    """Names what a process was doing between two looks."""

    UNSEEN = "unseen"  # one look failed, or it is gone
    TRACED = "in a debugger"
    STOPPED = "stopped"
    STARVED = "waiting for a processor or a disk"
    IDLE = "idle"
    AT_WORK = "at work"


class ThreadVitals(NamedTuple):
    """One thread's state, a letter of proc(5), and seconds of its life so far."""

    state: str
    ran_s: float
    waited_s: float  # for a processor; counted when it gets one


class Vitals(NamedTuple):
    """One look at a process."""

    state: str  # T is stopped
    is_traced: bool
    threads: Mapping[int, ThreadVitals]


def read_vitals(pid: int, *, in_detail: bool = True) -> Vitals | None:
    """None where the process cannot be seen: it is gone, or this process may open no file. Its
    threads are looked at only in detail: they are many."""
    folder = Path(f"/proc/{pid}")
    try:
        lines = (folder / "status").read_text(errors="replace").splitlines()
        said = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        threads = dict(_threads(folder / "task")) if in_detail else {}
        return Vitals(said["State"][0], said["TracerPid"] != "0", threads)
    except (OSError, LookupError, ValueError):
        return None


def condition(before: Vitals | None, now: Vitals | None, elapsed_s: float) -> Condition:
    """Compares two looks at one process."""
    if before is None or now is None:
        return Condition.UNSEEN
    if now.is_traced:
        return Condition.TRACED
    if now.state == "T":
        return Condition.STOPPED
    ran_s = 0.0
    for tid, thread in now.threads.items():
        earlier = before.threads.get(tid, ThreadVitals("S", 0.0, 0.0))
        if _is_starved(earlier, thread, elapsed_s):
            return Condition.STARVED
        ran_s += thread.ran_s - earlier.ran_s
    return Condition.IDLE if ran_s < MAX_IDLE * elapsed_s else Condition.AT_WORK


def _is_starved(before: ThreadVitals, now: ThreadVitals, elapsed_s: float) -> bool:
    if now.state == "D":
        return True
    ran_s = now.ran_s - before.ran_s
    waited_s = now.waited_s - before.waited_s
    if before.state == now.state == "R":
        # A wait is counted when it ends, and that for a quota not at all.
        waited_s = max(waited_s, elapsed_s - ran_s)
    return waited_s > max(ran_s, MIN_WAITED * elapsed_s)


def _threads(folder: Path) -> Iterator[tuple[int, ThreadVitals]]:
    for task in folder.iterdir():
        try:
            yield int(task.name), _thread(task)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile


def _thread(task: Path) -> ThreadVitals:
    # The name, in parentheses, may hold anything.
    fields = (task / "stat").read_text(errors="replace").rpartition(")")[2].split()
    try:
        ran, waited, _ = (task / "schedstat").read_text().split()
    except FileNotFoundError:  # a kernel that does not count waits
        return ThreadVitals(fields[0], (int(fields[11]) + int(fields[12])) / TICKS_PER_S, 0.0)
    return ThreadVitals(fields[0], int(ran) / NANOSECONDS_PER_S, int(waited) / NANOSECONDS_PER_S)
