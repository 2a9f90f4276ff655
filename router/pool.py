"""The live pool: what members report, and what was placed on them since they last reported.

It knows no prices and opens no sockets; time comes in as an argument. One owner: the event loop.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cluster.types import Incarnation, LoadReport, Member, Role, WorkerAddress, WorkerId
from router.absences import Absences, ColdStart
from router.load import Load, Loads, LoadTable
from router.pair_costs import PairCosts, PairCostTable
from router.standing import Assumed, Standing


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A member that gets nothing, and why."""

    worker: WorkerId
    role: Role
    reason: str


class PoolSnapshot(NamedTuple):
    """All that serve, prefill workers first."""

    loads: Loads
    costs: PairCosts
    now: float = 0.0
    refused: tuple[Refusal, ...] = ()  # who gets nothing, as of when that last changed

    @property
    def decode(self) -> tuple[Load, ...]:
        return self.loads[self.loads.num_prefill :]

    def may_fetch(self, receiver: WorkerId, source: WorkerId) -> bool:
        """Tells whether a way for KV may join them, as far as it is known."""
        apart, positions = self.costs.apart, self.loads.positions
        if apart is None:
            return True
        are_known = receiver in positions and source in positions
        return are_known and not apart[positions[receiver], positions[source]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Booking:
    """Says what one placed request will weigh on the workers that were chosen for it."""

    request_id: str
    decode: WorkerId
    prefill: WorkerId | None  # None: the decode worker prefills
    num_prefill_tokens: int
    num_context_tokens: int
    num_sequences: int = 1
    prefill_s: float = 0.0  # predicted

    @property
    def computing(self) -> WorkerId:
        return self.prefill or self.decode

    @property
    def workers(self) -> frozenset[WorkerId]:
        return frozenset((self.decode, self.computing))


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberStatus:
    member: Member
    report: LoadReport
    report_age_s: float | None  # None: it has not reported yet
    refusal: str | None  # None: it serves
    num_in_flight: int


@dataclass(slots=True, eq=False)
class Pool:
    """Members by id. Every placed request is booked until it ends."""

    assumed: Assumed = field(default_factory=Assumed)
    lag_s: Callable[[], float] = float  # how long we were away, in all; no silence counts then
    absences: Absences = field(default_factory=Absences)
    cold_start: ColdStart = field(default_factory=ColdStart)  # of decode workers
    _members: dict[WorkerId, Standing] = field(default_factory=dict)
    _booked: set[Booking] = field(default_factory=set)
    _serving: tuple[Standing, ...] = ()  # in the order of the table
    _table: LoadTable = field(default_factory=lambda: LoadTable((), num_prefill=0))
    _costs: PairCostTable = field(default_factory=lambda: PairCostTable(0, 0.0, 0.0))
    _refused: tuple[Refusal, ...] = ()
    _sorts_at: float = -inf  # when who serves has to be looked at anew
    _changed: set[Standing] = field(default_factory=set)  # since the table was brought up to date

    @property
    def num_in_flight(self) -> int:
        return len(self._booked)

    def join(self, member: Member) -> None:
        """Takes a member in; a new life of a known worker starts without any past."""
        live = self._members.get(member.worker.worker_id)
        if live is None or live.member.worker.incarnation != member.worker.incarnation:
            if live is not None:
                self._missed(live)
            self._members[member.worker.worker_id] = Standing(member, self.lag_s)
        else:
            live.member, live.base = member, None
            self._changed.add(live)
        self._sorts_at = -inf

    def leave(self, worker: WorkerId, incarnation: Incarnation) -> None:
        live = self._members.get(worker)
        if live and live.member.worker.incarnation == incarnation:
            self._missed(live)
            del self._members[worker]
            self._sorts_at = -inf

    def report(
        self, worker: WorkerId, incarnation: Incarnation, report: LoadReport, now: float
    ) -> None:
        """Takes a load report; what it contains is no longer counted here."""
        live = self._of_life(worker, incarnation)
        if live is None:
            return
        if report.links is None or report.pairs is None:  # they are told more seldom
            last = live.report
            links = last.links if report.links is None else report.links
            pairs = last.pairs if report.pairs is None else report.pairs
            report = replace(report, links=links, pairs=pairs)
        if live.position is not None and report.links != live.report.links:
            self._put_links(live, report)
        live.report, live.reported_at, live.is_reachable = report, now, True
        live.lag_at_report_s = self.lag_s()
        live.base = live.as_reported(self.assumed)  # now: the next request should not wait for it
        self.absences.heard(worker, incarnation, now)
        live.num_ended = live.num_ended_context = 0
        self._changed.add(live)
        for request_id in report.request_ids:
            live.prefills.pop(request_id, None)
            if weight := live.decodes.pop(request_id, None):
                live.reported[request_id] = weight
            live.discount(live.overtaken.get(request_id))
        live.overtaken.clear()
        if (live.refusal(now) is None) != (live.position is not None):
            self._sorts_at = -inf

    def unreachable(self, worker: WorkerId, incarnation: Incarnation, now: float) -> None:
        """Its stream broke: nothing is sent there until it reports again."""
        if live := self._of_life(worker, incarnation):
            live.is_reachable = False
            self._missed(live, now)
            self._sorts_at = -inf

    def goodbye(self, worker: WorkerId, incarnation: Incarnation) -> None:
        """It says that it leaves: nobody need wait for it."""
        if live := self._of_life(worker, incarnation):
            live.has_said_goodbye = True
            self.absences.said_goodbye(worker)

    def fail(self, worker: WorkerId, now: float) -> None:
        """A call to it failed: left alone for a moment, longer each time."""
        if live := self._members.get(worker):
            live.num_failures += 1
            live.failed_at, live.lag_at_failure_s = now, self.lag_s()
            self._sorts_at = -inf

    def drains(self, worker: WorkerId, incarnation: Incarnation) -> None:
        """It has refused something because it drains: its reports say how long it does."""
        if live := self._of_life(worker, incarnation):
            live.report = replace(live.report, is_draining=True)
            self._sorts_at = -inf

    def book(self, booking: Booking) -> None:
        """Counts a placed request, until `release`."""
        self._booked.add(booking)
        if computing := self._members.get(booking.computing):
            weight_s = (booking.num_prefill_tokens, booking.prefill_s)
            computing.prefills[booking.request_id] = weight_s
            self._changed.add(computing)
        if decoding := self._members.get(booking.decode):
            weight = (booking.num_sequences, booking.num_context_tokens)
            decoding.decodes[booking.request_id] = weight
            self._changed.add(decoding)

    def begun(self, booking: Booking) -> None:
        """Its prefill is over, and the decode worker did its part."""
        if computing := self._members.get(booking.computing):
            computing.prefills.pop(booking.request_id, None)
            self._changed.add(computing)
        decoding = self._members.get(booking.decode)
        if decoding is not None and decoding.num_failures:
            decoding.num_failures = 0
            self._sorts_at = -inf

    def release(self, booking: Booking) -> None:
        self._booked.remove(booking)
        request_id = booking.request_id
        for worker in booking.workers:
            if live := self._members.get(worker):
                live.prefills.pop(request_id, None)
                if weight := live.decodes.pop(request_id, None):
                    live.overtaken[request_id] = weight
                live.discount(live.reported.pop(request_id, None))
                self._changed.add(live)

    def snapshot(self, now: float) -> PoolSnapshot:
        """Freezes who serves. Only what changed since the last one is made anew."""
        if now >= self._sorts_at:
            self._sort(now)
        for live in self._changed:
            if live.position is not None:
                self._table.put(live.position, live.load(self.assumed))
        self._changed.clear()
        return PoolSnapshot(self._table.freeze(), self._costs.freeze(), now, self._refused)

    def refusals(self, now: float) -> list[Refusal]:
        """Lists who gets nothing."""
        return [
            Refusal(worker=worker, role=live.member.role, reason=reason)
            for worker, live in self._members.items()
            if (reason := live.refusal(now)) is not None
        ]

    def is_serving(self, now: float) -> bool:
        """Tells whether any decode worker takes requests."""
        return any(
            live.member.role is Role.DECODE and live.refusal(now) is None
            for live in self._members.values()
        )

    def expects(self, role: Role, excluded: Collection[WorkerId], now: float) -> bool:
        """Tells whether one of a role that gets nothing now will take requests before long: it is
        away and expected back, or about to be missed, or what keeps it from serving may pass; or
        one is started for who waits."""
        if role is Role.DECODE and self.cold_start.wait_s(now):
            return True
        return any(self.absences.expected(role, now)) or any(
            live.may_be_dead(now) if worker in excluded else live.may_recover(now)
            for worker, live in self._members.items()
            if live.member.role is role
        )

    def room(self, now: float) -> float:
        """Answers that decode workers that serve could begin at once."""
        decode = self.snapshot(now).decode
        return sum(max(0.0, load.max_sequences - load.num_in_flight) for load in decode)

    def is_leaving(self, worker: WorkerId) -> bool:
        """Tells whether it ends as it was told to."""
        live = self._members.get(worker)
        return live is not None and live.is_leaving

    def is_reported(self, request_id: str, worker: WorkerId) -> bool:
        """Tells whether a worker has said that it has this request."""
        live = self._members.get(worker)
        return live is not None and request_id in live.reported

    def reporting(self, now: float) -> set[WorkerId]:
        """Names who still speaks to us, whether it serves or not."""
        return {worker for worker, live in self._members.items() if live.is_reporting(now)}

    def address(self, worker: WorkerId) -> WorkerAddress | None:
        live = self._members.get(worker)
        return live.member.worker if live else None

    def statuses(self, now: float) -> Iterator[MemberStatus]:
        placed = Counter(worker for b in self._booked for worker in b.workers)
        for worker, live in self._members.items():
            yield MemberStatus(
                member=live.member,
                report=live.report,
                report_age_s=None if live.reported_at is None else now - live.reported_at,
                refusal=live.refusal(now),
                num_in_flight=placed[worker],
            )

    def check(self) -> None:
        """Nothing is counted for a request that has ended."""
        booked = {booking.request_id for booking in self._booked}
        assert len(booked) == len(self._booked), "a request that is booked twice"
        for live in self._members.values():
            assert live.prefills.keys() | live.decodes.keys() | live.reported.keys() <= booked

    def _sort(self, now: float) -> None:
        """Finds out who serves; if they are others than before, tables are begun anew."""
        least_stale = None if self.is_serving(now) else self._least_stale(now)
        refused = [each for each in self.refusals(now) if each.worker != least_stale]
        self._refused, names = tuple(refused), {refusal.worker for refusal in refused}
        lives = [live for worker, live in self._members.items() if worker not in names]
        lives.sort(key=lambda live: live.member.role is not Role.PREFILL)
        changes_at = (live.changes_at(now) for live in self._members.values())
        self._sorts_at = min(changes_at, default=inf)
        if tuple(lives) == self._serving:
            return
        for live in self._serving:
            live.position = None
        self._serving = tuple(lives)
        for position, live in enumerate(lives):
            live.position = position
        self._table = LoadTable(
            [live.load(self.assumed) for live in lives],
            num_prefill=sum(live.member.role is Role.PREFILL for live in lives),
        )
        s_per_byte = 1.0 / self.assumed.transfer_bytes_per_s
        apart = _apart([live.member.worker.fingerprint.wire_version for live in lives])
        self._costs = PairCostTable(len(lives), self.assumed.transfer_setup_s, s_per_byte, apart)
        for live in lives:
            self._put_links(live, live.report)

    def _put_links(self, live: Standing, report: LoadReport) -> None:
        assert live.position is not None
        for link in report.links or ():
            source = self._members.get(link.peer)
            if source is not None and source.position is not None:
                self._costs.put(live.position, source.position, link.setup_s, link.s_per_byte)

    def _least_stale(self, now: float) -> WorkerId | None:
        """The decode worker that was silent for the shortest, of those that are nothing else."""
        silent = [
            (live.silent_s(now), worker)
            for worker, live in self._members.items()
            if live.member.role is Role.DECODE and live.fault(now) is None
        ]
        return min(silent)[1] if silent else None

    def _missed(self, live: Standing, at: float | None = None) -> None:
        """Its life is over, or seems so: as of its last report, where nobody saw it end."""
        worker = live.member.worker
        if live.is_leaving:
            self.absences.said_goodbye(worker.worker_id)
        elif live.reported_at is not None:
            since = live.reported_at if at is None else at
            self.absences.left(worker.worker_id, live.member.role, worker.incarnation, since)

    def _of_life(self, worker: WorkerId, incarnation: Incarnation) -> Standing | None:
        live = self._members.get(worker)
        return live if live and live.member.worker.incarnation == incarnation else None


def _apart(wire_versions: Sequence[int]) -> NDArray[np.bool_] | None:
    """Pairs that exchange no KV; None where all speak one version, as but during an upgrade."""
    if len(set(wire_versions)) < 2:
        return None
    versions = np.array(wire_versions)
    apart: NDArray[np.bool_] = versions[:, None] != versions[None, :]
    return apart
