"""The planner beside a router in the same process: what a simulation asks, and what one that runs
for itself would do with what it hears from routers."""

from collections.abc import Mapping

from cluster.types import Role
from deploy.planner.observation import observed
from deploy.planner.planner import PlannerState, SizingDecision, decide
from deploy.planner.settings import Bounds, PlannerSettings
from router.placer import Placer
from simulator.elastic import Staff, Staffing
from simulator.setting import Setting


class Planner:
    """Owns the state from one decision to the next."""

    interval_s = 20.0

    def __init__(self, settings: PlannerSettings, bounds: Bounds, base: Setting) -> None:
        self.decisions: list[tuple[float, SizingDecision]] = []  # that changed something
        self._settings = settings
        self._bounds = bounds
        self._base = base
        self._state = PlannerState()

    def wanted(self, now_s: float, placer: Placer, staff: Mapping[Role, Staff]) -> Staffing:
        seen = observed(
            placer.books.observed.traffic.arrivals,
            list(placer.pool.statuses(now_s)),
            now_s=now_s,
            window_s=self._settings.window_s,
            most_window_s=self._settings.most_window_s,
            prefill=staff[Role.PREFILL],
            decode=staff[Role.DECODE],
            base=self._base,
        )
        decision, self._state = decide(seen, self._state, self._settings, self._bounds)
        counts = decision.counts
        now = tuple(staff[role].num_there for role in (Role.PREFILL, Role.DECODE))
        if counts != now:
            self.decisions.append((now_s, decision))
        return Staffing(
            num_prefill=counts.prefill, num_decode=counts.decode, num_flips=decision.num_flips
        )
