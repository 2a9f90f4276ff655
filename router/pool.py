"""The live pool: what members report, and what was placed on them since they last reported.

It knows no prices and opens no sockets; time comes in as an argument. One owner: the event loop.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import inf
from typing import NamedTuple

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
from router.load import Load, Loads, LoadTable
from router.pair_costs import PairCosts, PairCostTable

SILENCE_S = 1.0  # four missed reports: nothing more is sent there
_FIRST_BACKOFF_S = 0.25
_LAST_BACKOFF_S = 5.0

# What a worker reports before it has fitted a model.
_NO_PREFILL = PrefillCost(c0=0.0, c1=0.0)
_NO_DECODE = DecodeCost(d0=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """What is taken to be true where nothing has been measured yet."""

    prefill: PrefillCost = field(default_factory=lambda: PrefillCost(c0=0.002, c1=2e-4))
    decode: DecodeCost = field(default_factory=lambda: DecodeCost(d0=0.01, d1=1e-7, d2=0.001))
    transfer_setup_s: float = 0.005  # reserve, grant, close
    transfer_bytes_per_s: float = 1e9


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Booking:
    """What one placed request will weigh on the workers that were chosen for it."""

    request_id: str
    decode: WorkerId
    prefill: WorkerId | None  # None: the decode worker prefills
    num_prefill_tokens: int
    num_context_tokens: int
    num_sequences: int = 1
    prefill_s: float = 0.0  # predicted

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
    prefills: dict[str, tuple[int, float]] = field(default_factory=dict)  # -> tokens, seconds
    decodes: dict[str, tuple[int, int]] = field(default_factory=dict)  # -> sequences, context
    reported: dict[str, tuple[int, int]] = field(default_factory=dict)  # its reports have them
    overtaken: dict[str, tuple[int, int]] = field(default_factory=dict)  # ended before a report
    num_ended: int = 0  # sequences that the last report still counts, and their context
    num_ended_context: int = 0
    position: int | None = None  # among those that serve

    def refusal(self, now: float) -> str | None:
        """Why nothing is sent here, or None."""
        report = self.report
        if report.is_draining:
            return "draining"
        if not self.is_reachable:
            return "unreachable"
        if self.reported_at is None:
            return "no report yet"
        if now >= self.reported_at + SILENCE_S:
            return f"no report for {now - self.reported_at:.1f} s"
        if not report.is_serving:
            return f"no progress: its step has run for {report.step_age_s:.1f} s"
        if now < self.failed_at + self._backoff_s():
            return f"failed {now - self.failed_at:.1f} s ago"
        return None

    def is_reporting(self, now: float) -> bool:
        spoke_at = self.reported_at
        return self.is_reachable and spoke_at is not None and now < spoke_at + SILENCE_S

    def changes_at(self, now: float) -> float:
        """When `refusal` may change by itself."""
        silent_at = inf if self.reported_at is None else self.reported_at + SILENCE_S
        rested_at = self.failed_at + self._backoff_s()
        return min((at for at in (silent_at, rested_at) if at > now), default=inf)

    def load(self, assumed: Assumed) -> Load:
        """Its last report, and what came after it."""
        report, layout = self.report, self.member.worker.fingerprint.layout
        is_prefill = self.member.role is Role.PREFILL
        prefill = report.prefill_cost if report.prefill_cost != _NO_PREFILL else assumed.prefill
        decode = report.decode_cost if report.decode_cost != _NO_DECODE else assumed.decode
        reported_s = self.reported_at or 0.0
        num_sequences = num_context = num_tokens = 0
        booked_s = 0.0
        for count, context in self.decodes.values():
            num_sequences, num_context = num_sequences + count, num_context + context
        for tokens, seconds in self.prefills.values():
            num_tokens, booked_s = num_tokens + tokens, booked_s + seconds
        num_running = max(0, report.num_running - self.num_ended)
        num_reported_context = max(0, report.num_context_tokens - self.num_ended_context)
        num_booked = len(self.prefills) if is_prefill else num_sequences
        num_prompts = report.num_waiting + len(self.prefills)
        num_free = report.num_free_blocks * layout.block_size
        return Load(
            self.member.worker.worker_id,
            tuple((reported_s + due_s, seconds) for due_s, seconds in report.backlog),
            reported_s,
            booked_s=booked_s,
            num_waiting=report.num_waiting + num_booked,
            num_running=num_running,
            num_prompts=num_prompts + (num_running if is_prefill else 0),
            num_prefill_tokens=report.num_queued_tokens + num_tokens,
            num_context_tokens=num_reported_context + num_context,
            num_free_tokens=num_free - num_context - report.num_claimed_tokens,
            num_total_tokens=report.num_blocks * layout.block_size or inf,
            num_unused_tokens=report.num_unused_blocks * layout.block_size,
            # One answer more than now: the worker is lost to whoever comes next, too.
            num_delayed=0 if is_prefill else num_running + num_sequences + 1,
            max_sequences=self.member.max_sequences or inf,
            token_bytes=layout.num_planes * layout.num_layers * layout.slot_bytes,
            c0=prefill.c0,
            c1=prefill.c1,
            c2=prefill.c2,
            c3=prefill.c3,
            d0=decode.d0,
            d1=decode.d1,
            d2=decode.d2,
            prefill_error=report.prefill_error.p90,
            decode_error=report.decode_error.p90,
        )

    def discount(self, weight: tuple[int, int] | None) -> None:
        """Of an answer that has ended, and that the last report still counts. Else who asks again
        at once, as a conversation does, finds its own last answer in the way."""
        if weight is not None:
            self.num_ended += weight[0]
            self.num_ended_context += weight[1]

    def _backoff_s(self) -> float:
        if self.num_failures == 0:
            return 0.0
        return min(_LAST_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** (self.num_failures - 1))


@dataclass(slots=True, eq=False)
class Pool:
    """Members by id. Every placed request is booked until it ends."""

    assumed: Assumed = Assumed()
    _members: dict[WorkerId, _Live] = field(default_factory=dict)
    _booked: dict[str, Booking] = field(default_factory=dict)
    _serving: tuple[_Live, ...] = ()  # in the order of the table
    _table: LoadTable = field(default_factory=lambda: LoadTable((), num_prefill=0))
    _costs: PairCostTable = field(default_factory=lambda: PairCostTable(0, 0.0, 0.0))
    _refused: tuple[Refusal, ...] = ()
    _sorts_at: float = -inf  # when who serves has to be looked at anew
    _changed: set[_Live] = field(default_factory=set)  # since the table was brought up to date

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
            self._changed.add(live)
        self._sorts_at = -inf

    def leave(self, worker: WorkerId, incarnation: Incarnation) -> None:
        live = self._members.get(worker)
        if live and live.member.worker.incarnation == incarnation:
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

    def unreachable(self, worker: WorkerId, incarnation: Incarnation) -> None:
        """Its stream broke: nothing is sent there until it reports again."""
        if live := self._of_life(worker, incarnation):
            live.is_reachable = False
            self._sorts_at = -inf

    def fail(self, worker: WorkerId, now: float) -> None:
        """A call to it failed: left alone for a moment, longer each time."""
        if live := self._members.get(worker):
            live.num_failures += 1
            live.failed_at = now
            self._sorts_at = -inf

    def book(self, booking: Booking) -> None:
        """Counts a placed request. One booking a request id; `release` ends it."""
        assert booking.request_id not in self._booked
        self._booked[booking.request_id] = booking
        if prefilling := self._members.get(booking.prefilling):
            weight_s = (booking.num_prefill_tokens, booking.prefill_s)
            prefilling.prefills[booking.request_id] = weight_s
            self._changed.add(prefilling)
        if decoding := self._members.get(booking.decode):
            weight = (booking.num_sequences, booking.num_context_tokens)
            decoding.decodes[booking.request_id] = weight
            self._changed.add(decoding)

    def first_token(self, request_id: str) -> None:
        """Its prefill is over, and the decode worker did its part."""
        booking = self._booked.get(request_id)
        if booking is None:
            return
        if prefilling := self._members.get(booking.prefilling):
            prefilling.prefills.pop(request_id, None)
            self._changed.add(prefilling)
        decoding = self._members.get(booking.decode)
        if decoding is not None and decoding.num_failures:
            decoding.num_failures = 0
            self._sorts_at = -inf

    def release(self, request_id: str) -> None:
        booking = self._booked.pop(request_id, None)
        if booking is None:
            return
        for live in self._involved(booking):
            live.prefills.pop(request_id, None)
            if weight := live.decodes.pop(request_id, None):
                live.overtaken[request_id] = weight
            live.discount(live.reported.pop(request_id, None))
            self._changed.add(live)

    def snapshot(self, now: float) -> PoolSnapshot:
        """Who serves, frozen. Only what changed since the last one is made anew."""
        if now >= self._sorts_at:
            self._sort(now)
        for live in self._changed:
            if live.position is not None:
                self._table.put(live.position, live.load(self.assumed))
        self._changed.clear()
        return PoolSnapshot(self._table.freeze(), self._costs.freeze(), now, self._refused)

    def refusals(self, now: float) -> list[Refusal]:
        """Who gets nothing."""
        return [
            Refusal(worker=worker, role=live.member.role, reason=reason)
            for worker, live in self._members.items()
            if (reason := live.refusal(now)) is not None
        ]

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
            assert set(live.reported) <= set(self._booked)

    def _sort(self, now: float) -> None:
        """Finds out who serves; if they are others than before, tables are begun anew."""
        self._refused = tuple(self.refusals(now))
        refused = {refusal.worker for refusal in self._refused}
        lives = [live for worker, live in self._members.items() if worker not in refused]
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
        self._costs = PairCostTable(len(lives), self.assumed.transfer_setup_s, s_per_byte)
        for live in lives:
            self._put_links(live, live.report)

    def _put_links(self, live: _Live, report: LoadReport) -> None:
        assert live.position is not None
        for link in report.links or ():
            source = self._members.get(link.peer)
            if source is not None and source.position is not None:
                self._costs.put(live.position, source.position, link.setup_s, link.s_per_byte)

    def _of_life(self, worker: WorkerId, incarnation: Incarnation) -> _Live | None:
        live = self._members.get(worker)
        return live if live and live.member.worker.incarnation == incarnation else None

    def _involved(self, booking: Booking) -> Iterator[_Live]:
        for worker in booking.workers:
            if live := self._members.get(worker):
                yield live
