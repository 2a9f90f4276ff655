"""The live pool: what members report, and what was placed on them since they last reported.

It knows no prices and opens no sockets; time comes in as an argument. One owner: the event loop.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from cluster.types import (
    DecodeCost,
    Incarnation,
    LoadReport,
    Member,
    PrefillCost,
    Role,
    WorkerAddress,
    WorkerId,
)

SILENCE_S = 1.0  # four missed reports: nothing more is sent there
_FIRST_BACKOFF_S = 0.25
_LAST_BACKOFF_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """One serving worker, as placement sees it: its last report and what came after it."""

    worker: WorkerId
    reported_at: float  # by the router's clock
    num_running: int
    num_waiting: int
    num_queued_tokens: int  # by the report
    num_context_tokens: int
    num_booked_prompts: int  # placed for prefill, in no report yet
    num_booked_tokens: int
    num_booked_sequences: int  # placed for decode, in no report yet
    num_booked_context_tokens: int
    num_free_tokens: int
    num_total_tokens: int
    max_sequences: int
    token_bytes: int  # of one token's KV
    prefill_cost: PrefillCost
    decode_cost: DecodeCost


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A member that gets nothing, and why."""

    worker: WorkerId
    role: Role
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSnapshot:
    prefill: tuple[WorkerView, ...] = ()
    decode: tuple[WorkerView, ...] = ()
    refused: tuple[Refusal, ...] = ()
    now: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Booking:
    """What one placed request will weigh on the workers that were chosen for it."""

    request_id: str
    decode: WorkerId
    prefill: WorkerId | None  # None: the decode worker prefills
    num_prefill_tokens: int
    num_context_tokens: int
    num_sequences: int = 1

    @property
    def prefilling(self) -> WorkerId:
        return self.prefill or self.decode

    @property
    def workers(self) -> frozenset[WorkerId]:
        return frozenset((self.decode, self.prefilling))


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberStatus:
    member: Member
    report: LoadReport
    report_age_s: float | None  # None: it has not reported yet
    refusal: str | None  # None: it serves
    num_in_flight: int


@dataclass(slots=True, eq=False)
class _Live:
    """A member and its bookkeeping. Bookings are dropped when a report contains them."""

    member: Member
    report: LoadReport = field(default_factory=LoadReport)
    reported_at: float | None = None
    is_reachable: bool = True
    num_failures: int = 0
    failed_at: float = 0.0
    prefills: dict[str, int] = field(default_factory=dict)  # request id -> prompt tokens
    decodes: dict[str, tuple[int, int]] = field(default_factory=dict)  # -> sequences, context
    _view: WorkerView | None = None  # until anything of it changes

    def refusal(self, now: float) -> str | None:
        """Why nothing is sent here, or None."""
        report = self.report
        if report.is_draining:
            return "draining"
        if not self.is_reachable:
            return "unreachable"
        if self.reported_at is None:
            return "no report yet"
        if now - self.reported_at > SILENCE_S:
            return f"no report for {now - self.reported_at:.1f} s"
        if not report.is_serving:
            return f"no progress: its step has run for {report.step_age_s:.1f} s"
        if now < self.failed_at + self._backoff_s():
            return f"failed {now - self.failed_at:.1f} s ago"
        return None

    def is_reporting(self, now: float) -> bool:
        spoke_at = self.reported_at
        return self.is_reachable and spoke_at is not None and now - spoke_at <= SILENCE_S

    def view(self) -> WorkerView:
        if self._view is None:
            self._view = self._made_view()
        return self._view

    def changed(self) -> None:
        self._view = None

    def _made_view(self) -> WorkerView:
        report, layout = self.report, self.member.worker.fingerprint.layout
        sequences = [count for count, _ in self.decodes.values()]
        contexts = [context for _, context in self.decodes.values()]
        return WorkerView(
            worker=self.member.worker.worker_id,
            reported_at=self.reported_at or 0.0,
            num_running=report.num_running,
            num_waiting=report.num_waiting,
            num_queued_tokens=report.num_queued_tokens,
            num_context_tokens=report.num_context_tokens,
            num_booked_prompts=len(self.prefills),
            num_booked_tokens=sum(self.prefills.values()),
            num_booked_sequences=sum(sequences),
            num_booked_context_tokens=sum(contexts),
            num_free_tokens=max(0, report.num_free_blocks * layout.block_size - sum(contexts)),
            num_total_tokens=report.num_blocks * layout.block_size,
            max_sequences=self.member.max_sequences,
            token_bytes=layout.num_planes * layout.num_layers * layout.slot_bytes,
            prefill_cost=report.prefill_cost,
            decode_cost=report.decode_cost,
        )

    def _backoff_s(self) -> float:
        if self.num_failures == 0:
            return 0.0
        return min(_LAST_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** (self.num_failures - 1))


@dataclass(slots=True, eq=False)
class Pool:
    """Members by id. Every placed request is booked until it ends."""

    _members: dict[WorkerId, _Live] = field(default_factory=dict)
    _booked: dict[str, Booking] = field(default_factory=dict)

    @property
    def num_in_flight(self) -> int:
        return len(self._booked)

    def join(self, member: Member) -> None:
        """Takes a member in; a new life of a known worker starts without any past."""
        live = self._members.get(member.worker.worker_id)
        if live is None or live.member.worker.incarnation != member.worker.incarnation:
            self._members[member.worker.worker_id] = _Live(member)
        else:
            live.member = member
            live.changed()

    def leave(self, worker: WorkerId, incarnation: Incarnation) -> None:
        live = self._members.get(worker)
        if live and live.member.worker.incarnation == incarnation:
            del self._members[worker]

    def report(
        self, worker: WorkerId, incarnation: Incarnation, report: LoadReport, now: float
    ) -> None:
        """Takes a load report; what it contains is no longer counted here."""
        live = self._of_life(worker, incarnation)
        if live is None:
            return
        if report.pairs is None:
            report = replace(report, pairs=live.report.pairs)
        live.report, live.reported_at, live.is_reachable = report, now, True
        live.changed()
        for request_id in report.request_ids:
            live.prefills.pop(request_id, None)
            live.decodes.pop(request_id, None)

    def unreachable(self, worker: WorkerId, incarnation: Incarnation) -> None:
        """Its stream broke: nothing is sent there until it reports again."""
        if live := self._of_life(worker, incarnation):
            live.is_reachable = False

    def fail(self, worker: WorkerId, now: float) -> None:
        """A call to it failed: left alone for a moment, longer each time."""
        if live := self._members.get(worker):
            live.num_failures += 1
            live.failed_at = now

    def book(self, booking: Booking) -> None:
        """Counts a placed request. One booking a request id; `release` ends it."""
        assert booking.request_id not in self._booked
        self._booked[booking.request_id] = booking
        if prefilling := self._members.get(booking.prefilling):
            prefilling.prefills[booking.request_id] = booking.num_prefill_tokens
            prefilling.changed()
        if decoding := self._members.get(booking.decode):
            weight = (booking.num_sequences, booking.num_context_tokens)
            decoding.decodes[booking.request_id] = weight
            decoding.changed()

    def first_token(self, request_id: str) -> None:
        """Its prefill is over, and the decode worker did its part."""
        booking = self._booked.get(request_id)
        if booking is None:
            return
        if prefilling := self._members.get(booking.prefilling):
            prefilling.prefills.pop(request_id, None)
            prefilling.changed()
        if decoding := self._members.get(booking.decode):
            decoding.num_failures = 0

    def release(self, request_id: str) -> None:
        booking = self._booked.pop(request_id, None)
        if booking is None:
            return
        for live in self._involved(booking):
            live.prefills.pop(request_id, None)
            live.decodes.pop(request_id, None)
            live.changed()

    def snapshot(self, now: float) -> PoolSnapshot:
        """The pool frozen: serving workers by role, and the others with their reasons."""
        serving: dict[Role, list[WorkerView]] = {role: [] for role in Role}
        refused = []
        for worker, live in self._members.items():
            reason = live.refusal(now)
            if reason is None:
                serving[live.member.role].append(live.view())
            else:
                refused.append(Refusal(worker=worker, role=live.member.role, reason=reason))
        return PoolSnapshot(
            prefill=tuple(serving[Role.PREFILL]),
            decode=tuple(serving[Role.DECODE]),
            refused=tuple(refused),
            now=now,
        )

    def is_serving(self, now: float) -> bool:
        """Whether any decode worker takes requests."""
        return any(
            live.member.role is Role.DECODE and live.refusal(now) is None
            for live in self._members.values()
        )

    def reporting(self, now: float) -> set[WorkerId]:
        """Who still speaks to us, whether it serves or not."""
        return {worker for worker, live in self._members.items() if live.is_reporting(now)}

    def address(self, worker: WorkerId) -> WorkerAddress | None:
        live = self._members.get(worker)
        return live.member.worker if live else None

    def statuses(self, now: float) -> Iterator[MemberStatus]:
        placed = Counter(worker for b in self._booked.values() for worker in b.workers)
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
        for live in self._members.values():
            assert set(live.prefills) <= set(self._booked)
            assert set(live.decodes) <= set(self._booked)

    def _of_life(self, worker: WorkerId, incarnation: Incarnation) -> _Live | None:
        live = self._members.get(worker)
        return live if live and live.member.worker.incarnation == incarnation else None

    def _involved(self, booking: Booking) -> Iterator[_Live]:
        for worker in booking.workers:
            if live := self._members.get(worker):
                yield live
