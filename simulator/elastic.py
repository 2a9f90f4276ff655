"""Workers that come and go while a simulation runs, as somebody outside wants it: one that is asked
for serves after a while, one that is let go ends what it has.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from math import inf
from typing import Protocol

from cluster.bounds import check_above, check_between
from cluster.types import Role, WorkerId
from router.placer import Placer
from simulator.cluster import ModelledCluster
from simulator.site import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Staff:
    """The workers of a role."""

    num_serving: int = 0
    num_starting: int = 0
    num_draining: int = 0

    @property
    def num_there(self) -> int:
        """That serve, or will."""
        return self.num_serving + self.num_starting


@dataclass(frozen=True, slots=True, kw_only=True)
class Staffing:
    """Sets how many workers serve or start; some of them by changing the role of others."""

    num_prefill: int
    num_decode: int
    num_flips: int = 0  # decode workers that become prefill workers; below 0 the other way

    def num_of(self, role: Role) -> int:
        return self.num_prefill if role is Role.PREFILL else self.num_decode


class Scaler(Protocol):
    @property
    def interval_s(self) -> float:
        """Says how long lies between two questions."""
        ...

    def wanted(self, now_s: float, placer: Placer, staff: Mapping[Role, Staff]) -> Staffing: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Turnover:
    """Says how long changes take."""

    start_s: float = 120.0  # from asking for a worker until it serves
    flip_s: float = 2.0  # from the end of its drain until it serves in the other role
    drain_s: float = 120.0  # at most; what is left then goes on elsewhere

    def __post_init__(self) -> None:
        for name in ("start_s", "flip_s"):
            check_between(name, getattr(self, name), "s", least=0.0, most=86_400.0)
        check_above("drain_s", self.drain_s, "s", least=0.0, most=86_400.0)


class Elastic:
    """Asks the scaler, and does what it wants. GPUs count from the asking to the release."""

    def __init__(
        self, world: World, cluster: ModelledCluster, scaler: Scaler, turnover: Turnover
    ) -> None:
        self._world = world
        self._cluster = cluster
        self._scaler = scaler
        self._turnover = turnover
        self._asked_s = {worker: (role, 0.0) for role, worker in world.setting.workers}
        self._starting: dict[WorkerId, int] = {}  # -> its entry on the agenda
        self._draining: dict[WorkerId, Role | None] = {}  # -> its role afterwards
        self._gpu_s = 0.0  # of those that were released
        traffic = cluster.router.placer.books.observed.traffic
        traffic.keep(world.agenda.now_s, inf)  # scalers look at it
        world.agenda.after(scaler.interval_s, self._look)

    def gpu_s(self, end_s: float) -> float:
        """All that was taken, until then."""
        held = self._asked_s.values()
        return self._gpu_s + sum(self._since_s(role, since_s, end_s) for role, since_s in held)

    def staff(self, role: Role) -> Staff:
        draining = [worker for worker in self._draining if self._role(worker) is role]
        num_starting = sum(self._role(worker) is role for worker in self._starting)
        arriving = sum(then is role for then in self._draining.values())  # by a flip
        num = sum(self._role(worker) is role for worker in self._asked_s)
        return Staff(
            num_serving=num - num_starting - len(draining),
            num_starting=num_starting + arriving,
            num_draining=len(draining),
        )

    def _role(self, worker: WorkerId) -> Role:
        return self._asked_s[worker][0]

    def _since_s(self, role: Role, since_s: float, now_s: float) -> float:
        return max(0.0, now_s - since_s) * self._world.setting.make(role).num_gpus

    # -- what is wanted ----------------------------------------------------------------------

    def _look(self) -> None:
        if self._cluster.is_over:
            return
        staff = {role: self.staff(role) for role in Role}
        now_s = self._world.agenda.now_s
        wanted = self._scaler.wanted(now_s, self._cluster.router.placer, staff)
        self._flip(wanted.num_flips)
        for role in Role:
            num_more = wanted.num_of(role) - self.staff(role).num_there
            for _ in range(num_more):
                self._ask(role)
            for _ in range(-num_more):
                self._let_go(role)
        self._world.agenda.after(self._scaler.interval_s, self._look)

    def _flip(self, num: int) -> None:
        role, then = (Role.DECODE, Role.PREFILL) if num > 0 else (Role.PREFILL, Role.DECODE)
        for _ in range(abs(num)):
            if (worker := self._idlest(role)) is not None:
                self._drain(worker, then)

    def _ask(self, role: Role) -> None:
        self._begin(role, self._turnover.start_s)

    def _begin(self, role: Role, after_s: float) -> None:
        names = (WorkerId(f"{role}-{number}") for number in count())
        worker = next(name for name in names if name not in self._asked_s)
        self._asked_s[worker] = role, self._world.agenda.now_s
        serve = partial(self._serve, worker)
        self._starting[worker] = self._world.agenda.after(after_s, serve)

    def _serve(self, worker: WorkerId) -> None:
        del self._starting[worker]
        if not self._cluster.is_over:
            self._cluster.start(self._role(worker), worker)

    def _let_go(self, role: Role) -> None:
        """Lets go of who has not begun yet, before who has."""
        starting = [worker for worker in self._starting if self._role(worker) is role]
        if starting:
            self._world.agenda.cancel(self._starting.pop(starting[-1]))
            self._release(starting[-1])
        elif (worker := self._idlest(role)) is not None:
            self._drain(worker, None)

    def _idlest(self, role: Role) -> WorkerId | None:
        """Finds the idlest of those that serve; the youngest of equals."""
        num_in_flight = {
            status.member.worker.worker_id: status.num_in_flight
            for status in self._cluster.router.pool.statuses(self._world.agenda.now_s)
        }
        serving = [
            worker
            for worker, (each, _) in self._asked_s.items()
            if each is role and worker not in self._starting and worker not in self._draining
        ]
        return min(reversed(serving), key=lambda each: num_in_flight.get(each, 0), default=None)

    # -- drains ------------------------------------------------------------------------------

    def _drain(self, worker: WorkerId, then: Role | None) -> None:
        self._draining[worker] = then
        self._cluster.drain(worker)
        self._await_end(worker, self._world.agenda.now_s + self._turnover.drain_s)

    def _await_end(self, worker: WorkerId, until_s: float) -> None:
        """A look every report: what was on its way when it began has come by the first."""
        self._world.agenda.after(
            self._world.setting.report_s, partial(self._look_at, worker, until_s)
        )

    def _look_at(self, worker: WorkerId, until_s: float) -> None:
        is_late = self._world.agenda.now_s >= until_s or self._cluster.is_over
        if not (is_late or self._cluster.is_idle(worker)):
            self._await_end(worker, until_s)
            return
        self._cluster.retire(worker)
        then = self._draining.pop(worker)
        self._release(worker)
        if then is not None:
            self._begin(then, self._turnover.flip_s)

    def _release(self, worker: WorkerId) -> None:
        role, since_s = self._asked_s.pop(worker)
        self._gpu_s += self._since_s(role, since_s, self._world.agenda.now_s)
