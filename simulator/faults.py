"""Says what goes wrong, and when: values, which `schedule` puts on the agenda."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf

from cluster.errors import ConfigError
from cluster.types import WorkerId
from simulator.agenda import Agenda
from simulator.cluster import ModelledCluster


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedFault:
    """Begins at `at_s` and is over `for_s` later."""

    worker: WorkerId
    at_s: float
    for_s: float = inf

    def __post_init__(self) -> None:
        if not (0.0 <= self.at_s < inf and self.for_s > 0.0):
            raise ConfigError(f"A fault begins at 0 s or later and lasts, unlike {self}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash(TimedFault):
    """The process dies; a new one serves after `for_s`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeze(TimedFault):
    """The process stands still, and is killed if it does for longer than the setting's lapse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow(TimedFault):
    """Its steps take `factor` times as long."""

    factor: float = 3.0

    def __post_init__(self) -> None:
        TimedFault.__post_init__(self)  # slots: `super()` would miss the class
        if not 0.0 < self.factor < inf:
            raise ConfigError(f"A step takes a multiple of its time, not {self.factor}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class LostEvents(TimedFault):
    """Its cache events do not reach the router; load reports do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition(TimedFault):
    """Router and worker do not reach each other."""


def schedule(faults: Iterable[TimedFault], agenda: Agenda, cluster: ModelledCluster) -> None:
    """Raises ConfigError for a worker that there is not."""
    for fault in faults:
        if fault.worker not in cluster.sites:
            raise ConfigError(f"There is no worker '{fault.worker}' that a fault could befall.")
        begin, end = _effects(fault, cluster)
        agenda.at(fault.at_s, begin)
        if fault.for_s != inf:
            agenda.at(fault.at_s + fault.for_s, end)


def random_faults(
    seed: int, workers: Sequence[WorkerId], *, num: int, duration_s: float, longest_s: float = 10.0
) -> list[TimedFault]:
    """Draws faults of every kind, on any worker, in the first `duration_s`; each ends some time."""
    chances = random.Random(seed)
    kinds = (Crash, Freeze, Slow, LostEvents, Partition)
    faults: list[TimedFault] = []
    for _ in range(num):
        kind, worker = chances.choice(kinds), chances.choice(workers)
        at_s, for_s = chances.uniform(0.0, duration_s), chances.uniform(0.1, longest_s)
        faults.append(kind(worker=worker, at_s=at_s, for_s=for_s))
    return faults


def _effects(fault: TimedFault, cluster: ModelledCluster) -> tuple[partial[None], partial[None]]:
    """Says what begins it, and what ends it."""
    worker = fault.worker
    match fault:
        case Crash():
            return partial(cluster.crash, worker), partial(cluster.restart, worker)
        case Freeze():
            return partial(cluster.freeze, worker), partial(cluster.thaw, worker)
        case Slow():
            slower = cluster.be_slower
            return partial(slower, worker, fault.factor), partial(slower, worker, 1.0)
        case LostEvents():
            lose = cluster.lose_events
            return partial(lose, worker, loses=True), partial(lose, worker, loses=False)
        case Partition():
            return partial(cluster.cut, worker), partial(cluster.heal, worker)
    raise TypeError(f"{fault} is no kind of fault")
