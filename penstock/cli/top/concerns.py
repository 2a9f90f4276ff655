"""Says what of all figures a person should look at first: who is worse than its like. Pure."""

from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Final, NamedTuple

from penstock.cli.top.router_figures import RouterFigures
from penstock.cli.top.texts import duration, gigabytes, share_text
from penstock.cli.top.workers import WorkerFigures, WorkerHealth

_FULL: Final = 0.95  # of a KV pool


class Concern(NamedTuple):
    weight: float  # more is worse
    worker: str  # empty: it is not one worker's
    column: str  # whose cell shows it
    sentence: str


class _Comparison(NamedTuple):
    """A figure that workers of one role have in common where all is well."""

    column: str
    what: str
    read: Callable[[WorkerFigures], float | None]
    text: Callable[[float | None], str]
    times: float  # of the others' median; below 1: less is worse
    at_least: float  # a difference that matters


def _itl_p99_s(worker: WorkerFigures) -> float | None:
    return worker.step_p99_s if worker.role == "decode" else None


_COMPARED: Final = (
    _Comparison("itl", "ITL", lambda w: w.itl_s, duration, 1.5, 0.002),
    _Comparison("itl", "ITL p99", _itl_p99_s, duration, 3.0, 0.01),
    _Comparison("queue", "a queue of", lambda w: w.queue_s, duration, 2.0, 0.25),
    _Comparison("gb_per_s", "GB/s of KV", lambda w: w.gb_per_s, gigabytes, 0.5, 0.0),
)


def concerns(workers: Sequence[WorkerFigures], router: RouterFigures) -> list[Concern]:
    """The worst first."""
    found = [*_of_router(router), *_of_health(workers), *_of_cells(workers)]
    serving = [each for each in workers if each.health is WorkerHealth.SERVING]
    for role in sorted({each.role for each in serving}):
        alike = [each for each in serving if each.role == role]
        for comparison in _COMPARED:
            found += _outliers(alike, comparison)
    return sorted(found, key=lambda each: -each.weight)


def _of_router(router: RouterFigures) -> Iterator[Concern]:
    if not router.is_store_up:
        yield Concern(90, "", "", "the store of members does not answer")
    if not router.policy.is_last_reload_good:
        yield Concern(80, "", "", "the last change of policy was refused: 'penstock policy status'")
    if router.num_parked:
        yield Concern(
            85, "", "", f"{router.num_parked:.0f} requests wait for a decode worker to come back"
        )


def _of_health(workers: Sequence[WorkerFigures]) -> Iterator[Concern]:
    for each in workers:
        if each.health in (WorkerHealth.SERVING, WorkerHealth.UNKNOWN):
            continue
        since = "" if each.since_s is None else f" for {duration(each.since_s)}"
        why = f": {each.error}" if each.error else ""
        weight = 10 if each.health is WorkerHealth.DRAINING else 100
        yield Concern(weight, each.name, "health", f"{each.health}{since}{why}")


def _of_cells(workers: Sequence[WorkerFigures]) -> Iterator[Concern]:
    for each in workers:
        if (each.kv_usage or 0.0) >= _FULL:
            told = f"its KV pool is {share_text(each.kv_usage)} full"
            yield Concern(20, each.name, "kv", told)
        if each.num_failed:
            told = f"{each.num_failed:.0f} transfers failed"
            yield Concern(30 + each.num_failed, each.name, "gb_per_s", told)


def _outliers(alike: Sequence[WorkerFigures], by: _Comparison) -> Iterator[Concern]:
    told = {each.name: number for each in alike if (number := by.read(each)) is not None}
    for name, number in told.items():
        others = [each for other, each in told.items() if other != name]
        if not others:
            return
        usual = median(others)
        is_worse = number > by.times * usual if by.times > 1 else number < by.times * usual
        if is_worse and abs(number - usual) >= by.at_least:
            times = max(number, usual) / min(number, usual) if min(number, usual) > 0 else 99.0
            sentence = f"{by.what} {by.text(number)}; the others {by.text(usual)}"
            yield Concern(40 + min(times, 39), name, by.column, sentence)
