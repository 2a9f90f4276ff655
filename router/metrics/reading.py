"""What one scrape of a router reads: its own parts, and how its members stand at that moment."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from cluster.metrics.labels import by_percentile
from cluster.metrics.metric import Series
from cluster.types import Role
from router.admission import Admission
from router.callers.callers import Callers
from router.callers.quotas import Quotas
from router.fleet import Fleet
from router.learned.accuracy import ClassCounters
from router.metrics.requests import RequestCounts
from router.placer import Placer
from router.policy_life.keeper import PolicyKeeper
from router.pool import MemberStatus
from router.relay import RelayCounters
from router.rollout.canary import Figures
from router.rollout.generations import LivePolicy
from router.tls.follow import DoorCertificate
from router.waiting import WaitingFigures

STATES: Final = ("serving", "draining", "not_serving", "away", "crash_looping")


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterReading:
    now: float  # of the router's monotonic clock
    counts: RequestCounts
    placer: Placer
    relayed: RelayCounters
    admission: Admission
    waiting: WaitingFigures
    fleet: Fleet
    policy: PolicyKeeper
    callers: Callers
    certificate: DoorCertificate | None
    quotas: Quotas
    members: list[MemberStatus]

    def by_outcome(self) -> Iterator[Series]:
        for labels, num in self.counts.by_outcome.items():
            yield Series(labels, num)

    # Members

    def by_state(self) -> Iterator[Series]:
        """All states, those that nobody is in among them: what falls to 0 must be seen to."""
        absences = self.placer.pool.absences
        counted = Counter((each.member.role, _state(each)) for each in self.members)
        for absence in absences.away(self.now):
            is_looping = absences.is_crash_looping(absence.worker, self.now)
            counted[absence.role, "crash_looping" if is_looping else "away"] += 1
        for role in Role:
            for state in STATES:
                yield Series((role, state), counted[role, state])

    def by_worker(self, read: Callable[[MemberStatus], float]) -> Iterator[Series]:
        for each in self.members:
            yield Series((each.member.worker.worker_id, each.member.role), read(each))

    def index_ages(self) -> Iterator[Series]:
        ages = self.placer.index.staleness_s(self.now)
        for each in self.members:
            worker = each.member.worker.worker_id
            if worker in ages:
                yield Series((worker, each.member.role), ages[worker])

    # The certificate of the front doors

    def certificate_left_s(self) -> Iterator[Series]:
        """Nothing, where they speak no TLS."""
        if self.certificate is not None:
            yield Series((), self.certificate.served.left_s())

    # Classes of service

    def by_class(self, read: Callable[[ClassCounters], float]) -> dict[str, float]:
        attainment = self.placer.books.observed.attainment
        return {name: read(counters) for name, counters in attainment.by_class().items()}

    # What was predicted

    def ttft_ratios(self) -> dict[str, float]:
        return by_percentile(self.placer.books.observed.accuracy.ttft.ratios)

    def itl_ratios(self) -> dict[str, float]:
        return by_percentile(self.placer.books.observed.accuracy.itl.ratios)

    # The policy

    def generations(self) -> dict[str, float]:
        return {side: live.number for side, live in self._sides()}

    def config_info(self) -> Iterator[Series]:
        active = self.policy.rollout.active
        yield Series((active.digest, str(active.number)), 1.0)

    def on_trial(self, read: Callable[[Figures], float]) -> dict[str, float]:
        """Nothing, while no policy is on trial."""
        if self.placer.generations.canary is None:
            return {}
        return {side: read(live.on_trial) for side, live in self._sides()}

    @property
    def canary_share(self) -> float:
        generations = self.placer.generations
        return generations.canary_settings.traffic_share if generations.canary else 0.0

    def _sides(self) -> Iterator[tuple[str, LivePolicy]]:
        generations = self.placer.generations
        yield "active", generations.active
        if generations.canary is not None:
            yield "canary", generations.canary


def _state(status: MemberStatus) -> str:
    if status.refusal is None:
        return "serving"
    return "draining" if status.report.is_draining else "not_serving"
