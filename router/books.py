"""All that a router knows of requests and workers when it places one, and keeps of those in flight:
looked up before a decision, written down after it. Synchronous; time comes in as an argument.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from cluster.types import GrainHash, Incarnation, WorkerId
from router.decision import Attempt, Decision, PlacementRequest
from router.fetches import ExpectedFetches, Missing
from router.flight import Ask, Ended, Flight, Placed
from router.index import PrefixIndex
from router.learned.observed import Observed
from router.pool import Booking, Pool, PoolSnapshot
from router.records import Records
from router.sessions import Sessions
from router.shares import TenantUse, gpu_s
from router.siblings import Siblings
from router.speculation import Speculation


@dataclass(slots=True, eq=False)
class Hits:
    """Counts prompt tokens of the requests that got an answer, and how many were cached."""

    num_prompt: int = 0
    num_predicted: int = 0
    num_actual: int = 0


@dataclass(slots=True, eq=False)
class PlacerCounters:
    """Counts since the start."""

    num_placed: int = 0
    num_moved: int = 0  # placed again elsewhere
    hits: Hits = field(default_factory=Hits)


@dataclass(slots=True, eq=False)
class Books:
    """Keeps the books of one placer."""

    pool: Pool
    index: PrefixIndex
    hash_grain: int
    records: Records
    speculation: Speculation = field(init=False)
    fetches: ExpectedFetches = field(default_factory=ExpectedFetches)
    siblings: Siblings = field(default_factory=Siblings)
    sessions: Sessions = field(default_factory=Sessions)
    observed: Observed = field(default_factory=Observed)
    tenants: TenantUse = field(default_factory=TenantUse)
    counters: PlacerCounters = field(default_factory=PlacerCounters)
    _hits: dict[WorkerId, Hits] = field(default_factory=dict)  # since this life is known

    def __post_init__(self) -> None:
        self.speculation = Speculation(self.index.numbering)

    def look_up(
        self, flight: Flight, snapshot: PoolSnapshot, excluded: frozenset[WorkerId]
    ) -> tuple[PlacementRequest, GrainHash | None]:
        """Looks up what is known of it: what it wants, what it may use, what is held of it. And the
        last grain that any worker holds."""
        ask, policy, kind = flight.ask, flight.record.live.policy, flight.kind
        loads, now = snapshot.loads, snapshot.now
        ends = self.index.match(ask.hashes)
        num_ready = self.index.numbering.column(ends, loads.positions)
        num_held, num_matched = None, ends[-1][0] if ends else 0
        if policy.speculates:
            expected = self.speculation.match(ask.hashes, ends, now)
            if expected:
                num_held = loads.column_of(expected, num_ready)
                num_matched = max(num_matched, *expected.values())
        last_matched = ask.hashes[num_matched - 1] if num_matched else None
        siblings = self.siblings.behind(last_matched)
        request = PlacementRequest(
            num_prompt_tokens=ask.num_prompt_tokens,
            max_tokens=ask.max_tokens,
            num_choices=ask.num_choices,
            num_output_tokens=self.observed.lengths.predicted(kind, ask.max_tokens),
            num_typical_tokens=self.observed.lengths.typical(kind, ask.max_tokens),
            service_class=flight.targets,
            age_s=now - ask.arrived_at,
            grain_tokens=self.hash_grain,
            num_ready=num_ready,
            num_held=num_held,
            num_siblings=loads.column_of(siblings) if siblings else None,
            excluded=excluded,
            session_worker=self.sessions.worker(flight.session, now, policy.sessions),
            tenant_excess=self.tenants.excess(ask.tenant, policy.tenants, now),
        )
        return request, last_matched

    def decided(
        self, flight: Flight, attempt: Attempt, last_matched: GrainHash | None, *, is_refused: bool
    ) -> Decision | None:
        """Books the workers, if there are any and it is not refused. Returns the decision with the
        source that it is told, too."""
        request, decision, now = attempt.request, attempt.decision, attempt.snapshot.now
        self.observed.came(flight, request, decision, now)
        self.records.attempted(flight.record, attempt)
        if decision is None or is_refused:
            return None
        ask, policy = flight.ask, attempt.policy
        computing, is_first = decision.placement.computing, not flight.num_placed
        decision, fetch = self._with_source(decision, ask, attempt.snapshot)
        booking = _booking(decision, ask)
        self.pool.book(booking)
        expectation, held = None, decision.num_held
        if policy.speculates:
            expectation = self.speculation.expect(computing, ask.hashes, now, start=held)
        sibling = self.siblings.placed(last_matched, computing)
        flight.placed = Placed(decision, now, booking, expectation, sibling, fetch)
        flight.is_taken_on = True
        flight.num_placed += 1
        self.sessions.remember(flight.session, decision.placement.decode, now, policy.sessions)
        if is_first:
            self.tenants.charge(ask.tenant, gpu_s(request, decision, attempt.snapshot), now)
        self.observed.placed(flight.targets, decision, now, is_first=is_first)
        self.counters.num_placed += 1
        self.counters.num_moved += not is_first
        return decision

    def begun(self, flight: Flight, num_cached_tokens: int, now: float) -> None:
        placed, record = flight.placed, flight.record
        assert placed is not None, "who is nowhere cannot begin"
        self.pool.begun(placed.booking)
        if placed.expectation:
            self.speculation.computed(placed.expectation, now)
        self._waits_no_more(placed)
        if record.first_token_at is not None:
            return  # it goes on after what another worker sent
        of_worker = self._hits.setdefault(placed.decision.placement.computing, Hits())
        for hits in (self.counters.hits, of_worker):
            hits.num_prompt += flight.ask.num_prompt_tokens
            hits.num_predicted += placed.decision.num_cached_tokens
            hits.num_actual += num_cached_tokens
        self.records.first_token(record, num_cached_tokens, now)
        self.observed.first_token(flight, placed, num_cached_tokens, now)

    def left(self, flight: Flight) -> None:
        placed, flight.placed = flight.placed, None
        if placed is None:
            return
        self.pool.release(placed.booking)
        if placed.expectation:
            self.speculation.settle(placed.expectation)
        self._waits_no_more(placed)

    def ended(self, flight: Flight, event: Ended, now: float) -> None:
        self.observed.ended(flight, event.fate, event.num_tokens, now)
        self.left(flight)
        self.records.ended(
            flight.record, event.fate, now, num_tokens=event.num_tokens, error=event.error
        )

    def leave(self, worker: WorkerId, incarnation: Incarnation) -> None:
        """A life of it is over, and with it what it held and would have computed."""
        self.pool.leave(worker, incarnation)
        self.speculation.forget(worker)
        self.index.purge(worker, incarnation)
        self.observed.local_s.forget(worker)
        self._hits.pop(worker, None)

    def hits_of(self, worker: WorkerId) -> Hits:
        """Says how good the predictions of its cached tokens were."""
        return self._hits.get(worker) or Hits()

    def check(self, flights: Iterable[Flight]) -> None:
        """Checks that what these, all that are in flight, hold is what is counted for them."""
        placed = [flight.placed for flight in flights if flight.placed]
        assert len(placed) == self.pool.num_in_flight
        self.pool.check()
        self.index.check()
        self.speculation.check()
        self.siblings.check(each.sibling for each in placed if each.sibling)
        self.fetches.check(each.fetch for each in placed if each.fetch)
        self.records.check()

    def _with_source(
        self, decision: Decision, ask: Ask, snapshot: PoolSnapshot
    ) -> tuple[Decision, Missing | None]:
        """Adds a source, if it counts on a prefix that another request fetches: it might come
        first. And what is fetched."""
        placement, num_ready = decision.placement, decision.num_ready
        if num_ready == len(ask.hashes):
            return decision, None
        missing = Missing(placement.computing, ask.hashes[num_ready])
        source = placement.source
        if source is None:
            source = self.fetches.source(missing)
            if source is None or not snapshot.may_fetch(placement.computing, source):
                return decision, None
            num_tokens = decision.num_cached_tokens
            placement = replace(placement, source=source, num_source_tokens=num_tokens)
            decision = replace(decision, placement=placement)
        self.fetches.told(missing, source)
        return decision, missing

    def _waits_no_more(self, placed: Placed) -> None:
        """Its first token is there, or it is given up."""
        if placed.sibling:
            self.siblings.end(placed.sibling)
        if placed.fetch:
            self.fetches.end(placed.fetch)
        placed.sibling = placed.fetch = None


def _booking(decision: Decision, ask: Ask) -> Booking:
    return Booking(
        request_id=ask.request_id,
        decode=decision.placement.decode,
        prefill=decision.placement.prefill,
        num_prefill_tokens=decision.num_prefill_tokens,
        num_context_tokens=ask.num_prompt_tokens,
        num_sequences=ask.num_choices,
        prefill_s=decision.prefill_s,
    )
