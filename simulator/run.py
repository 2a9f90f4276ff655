"""One simulation: a trace, a setting, a policy, a seed; the same four give the same report.

The router's index, pool and policy and the workers' schedulers, batchers and block pools are
the real ones; engines, transfers and messages are modelled, and time is the agenda's.
"""

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from cluster.errors import ConfigError
from cluster.types import MAX_LINKS, Role, WorkerId
from router.policy import Policy
from simulator.agenda import Agenda
from simulator.answer import ModelledAnswer
from simulator.cluster import ModelledCluster
from simulator.elastic import Elastic, Scaler, Turnover
from simulator.faults import TimedFault, schedule
from simulator.report import Ledger, Report, Samples
from simulator.setting import Setting
from simulator.site import World
from simulator.trace import Trace

Progress = Callable[[int], None]
DEFAULT_POLICY = Policy()
DEFAULT_TURNOVER = Turnover()


class Simulation:
    """Owns one run. `run` may be called once."""

    def __init__(
        self,
        trace: Trace,
        setting: Setting,
        *,
        policy: Policy = DEFAULT_POLICY,
        seed: int = 0,
        faults: Iterable[TimedFault] = (),
        jumps: bool = True,
        check_s: float | None = None,
        scaler: Scaler | None = None,
        turnover: Turnover = DEFAULT_TURNOVER,
    ) -> None:
        """`jumps`: steps in which nothing but tokens happens are taken many at once; the report
        is the same without. `check_s`: every so often all accounts are checked.
        `scaler`: the setting's workers are those at the beginning; it wants more and fewer.

        Raises ConfigError for a setting that does not fit the trace, or a wrong fault.
        """
        setting.check_grain(trace.grain)
        faults = tuple(faults)
        if scaler is not None and faults:
            raise ConfigError("Faults befall workers that stay: leave them out beside a scaler.")
        self._trace = trace
        self._agenda = Agenda()
        self._ledger = Ledger(setting.targets)
        self._check_s = check_s
        world = World(
            agenda=self._agenda,
            setting=setting,
            policy=policy,
            grain=trace.grain,
            ledger=self._ledger,
            seed=seed,
            jumps=jumps,
            links=setting.links(_names(setting, is_elastic=scaler is not None)),
        )
        self._setting = setting
        self.cluster = ModelledCluster(world)
        self.elastic = Elastic(world, self.cluster, scaler, turnover) if scaler else None
        self._num_arrived = 0
        schedule(faults, self._agenda, self.cluster)

    @property
    def now_s(self) -> float:
        return self._agenda.now_s

    def run(self, progress: Progress = lambda done: None) -> Report:
        """`progress` hears how many requests have come, now and then."""
        with _without_collector():
            self._run(progress)
        return self._report()

    def samples(self) -> Samples:
        """Gives what was seen so far."""
        return self._ledger.samples()

    def _run(self, progress: Progress) -> None:
        self._await_arrival()
        if self._check_s is not None:
            self._agenda.after(self._check_s, self._check)
        router, num = self.cluster.router, len(self._trace.requests)
        told = 0
        while self._num_arrived < num or router.num_open:
            if not self._agenda.step():
                raise RuntimeError(f"{router.num_open} requests wait, and nothing will happen.")
            if self._num_arrived - told >= 1000:
                told = self._num_arrived
                progress(told)
        self.cluster.is_over = True
        while self._agenda.step():  # what is still on its way
            pass
        progress(num)

    def _await_arrival(self) -> None:
        if self._num_arrived < len(self._trace.requests):
            arrival_s = self._trace.requests[self._num_arrived].arrival_s
            self._agenda.at(arrival_s, self._arrive)

    def _arrive(self) -> None:
        answer = ModelledAnswer(self._num_arrived, self._trace.requests[self._num_arrived])
        self._num_arrived += 1
        self.cluster.router.arrive(answer)
        self._await_arrival()

    def _check(self) -> None:
        self.cluster.check()
        if not self.cluster.is_over:
            assert self._check_s is not None
            self._agenda.after(self._check_s, self._check)

    def _report(self) -> Report:
        return self._ledger.report(
            self._trace,
            self._setting,
            busy_s=self.cluster.busy_s,
            num_preemptions=self.cluster.num_preemptions,
            gpu_s=self.elastic.gpu_s if self.elastic else self._setting.gpu_s,
        )


def simulate(
    trace: Trace,
    setting: Setting,
    *,
    policy: Policy = DEFAULT_POLICY,
    seed: int = 0,
    faults: Iterable[TimedFault] = (),
    progress: Progress = lambda done: None,
) -> Report:
    return Simulation(trace, setting, policy=policy, seed=seed, faults=faults).run(progress)


def _names(setting: Setting, *, is_elastic: bool) -> Iterator[WorkerId]:
    """Names all workers that there may ever be."""
    if not is_elastic:
        yield from (worker for _, worker in setting.workers)
        return
    for number in range(MAX_LINKS // len(Role)):
        yield from (WorkerId(f"{role}-{number}") for role in Role)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Nothing in a simulation is circular, so that it goes by itself; and to look through a
    million traced requests again and again is a fifth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
