"""Placing requests in a running router: gathers what is known of one, asks the policy, and keeps
book of it until its end. Synchronous; time comes in as an argument.

The simulator runs this very class in virtual time. Knows no stream and no socket.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import assert_never

from cluster.errors import InvalidRequest, Overloaded
from cluster.types import GrainHash, Incarnation, Role, WorkerId
from router.attempt import Attempt
from router.early_rejection import (
    Rejection,
    Returns,
    is_late,
    rejection,
    rejection_of_wait,
)
from router.fetches import ExpectedFetches, Missing
from router.flight import Ask, Begun, Ended, Event, Flight, Left, Placed
from router.index import PrefixIndex
from router.learned.observed import Observed
from router.policy import Decision, PlacementRequest, Policy, place
from router.policy_settings import ServiceClass
from router.pool import Booking, Pool, PoolSnapshot
from router.records import Fate, Record, Records
from router.rollout.generations import Generations
from router.sessions import Sessions, session_id
from router.shares import TenantUse, gpu_s
from router.siblings import Siblings
from router.speculation import Speculation
from router.targets import targets_of


@dataclass(slots=True, eq=False)
class PlacerCounters:
    """Since the start; the hits are prompt tokens of the requests that got an answer."""

    num_placed: int = 0
    num_moved: int = 0  # placed again elsewhere
    num_predicted_hits: int = 0
    num_actual_hits: int = 0


@dataclass(slots=True, eq=False)
class Hits:
    """Prompt tokens of the requests that a worker computed, since this life of it is known."""

    num_predicted: int = 0
    num_actual: int = 0


@dataclass(slots=True, eq=False)
class Placer:
    pool: Pool
    index: PrefixIndex
    hash_grain: int
    generations: Generations = field(default_factory=lambda: Generations(Policy()))
    records: Records = field(default_factory=Records)
    speculation: Speculation = field(init=False)
    fetches: ExpectedFetches = field(default_factory=ExpectedFetches)
    siblings: Siblings = field(default_factory=Siblings)
    counters: PlacerCounters = field(default_factory=PlacerCounters)
    sessions: Sessions = field(default_factory=Sessions)
    observed: Observed = field(default_factory=Observed)
    tenants: TenantUse = field(default_factory=TenantUse)
    returns: Returns = field(default_factory=Returns)
    _flights: dict[str, Flight] = field(default_factory=dict)  # by request id
    _hits: dict[WorkerId, Hits] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.speculation = Speculation(self.index.numbering)

    def place(
        self, ask: Ask, now: float, excluded: frozenset[WorkerId] = frozenset()
    ) -> Decision | None:
        """Books the workers that it chooses, until `Left` is told. None: nobody is left. Until
        `Ended` the request is placed by the policy that was in force at first.

        Raises InvalidRequest for a class that the policy does not know; Overloaded for a new
        request that cannot be served in time. Who was taken on before is placed whatever happens.
        """
        flight = self._flights.get(ask.request_id) or self._begin(ask, now)
        live, snapshot = flight.record.live, self.pool.snapshot(now)
        policy, state = live.policy, live.state
        request, last_matched = self._gathered(flight, snapshot, excluded)
        decision, live.state = place(request, snapshot, state, policy)
        self.observed.came(flight, request, decision, now)
        attempt = Attempt(request, snapshot, state, policy, decision)
        self.records.attempted(flight.record, attempt)
        if decision is None:
            return None
        if not flight.is_taken_on:
            self._check_in_time(request, decision, snapshot, policy)
        return self._booked(flight, request, decision, snapshot, last_matched)

    def taken_on(self, ask: Ask, now: float) -> ServiceClass:
        """Takes on a request that has to wait for a worker; returns what its class promises.

        Raises InvalidRequest as `place`; Overloaded for a new request whose first token would,
        with the wait that is predicted, be later than its policy allows.
        """
        flight = self._flights.get(ask.request_id) or self._begin(ask, now)
        wait_s = self.pool.absences.return_in_s(Role.DECODE, now)
        if wait_s is not None and not flight.num_placed:
            waits_s = now - ask.arrived_at + wait_s
            admission = flight.record.live.policy.admission
            rejected = rejection_of_wait(flight.targets, waits_s, admission)
            if rejected is not None:
                raise self._rejected(flight.targets, rejected, now)
        flight.is_taken_on = True
        return flight.targets

    def told(self, request_id: str, event: Event, now: float) -> Record | None:
        """Everybody who keeps book of a request hears of what has happened to it: here, and once.
        Returns its record. None, and nothing happens: no such request is in flight."""
        flight = self._flights.get(request_id)
        if flight is None:
            return None
        match event:
            case Begun():
                self._begun(flight, event.num_cached_tokens, now)
            case Left():
                self._left(flight)
            case Ended(fate, num_tokens, error):
                self.observed.ended(flight, fate, num_tokens, now)
                self._left(flight)
                del self._flights[request_id]
                self.records.ended(flight.record, fate, now, num_tokens=num_tokens, error=error)
            case _:
                assert_never(event)
        return flight.record

    def record(self, request_id: str) -> Record | None:
        """Of a request that is in flight, or remembered."""
        flight = self._flights.get(request_id)
        return flight.record if flight else self.records.find(request_id)

    @property
    def in_flight(self) -> Iterator[Record]:
        return (flight.record for flight in self._flights.values())

    def leave(self, worker: WorkerId, incarnation: Incarnation) -> None:
        """A life of it is over, and with it what it held and would have computed."""
        self.pool.leave(worker, incarnation)
        self.speculation.forget(worker)
        self.index.purge(worker, incarnation)
        self.observed.local_s.forget(worker)
        self._hits.pop(worker, None)

    def hits_of(self, worker: WorkerId) -> Hits:
        """How good the predictions of its cached tokens were."""
        return self._hits.get(worker) or Hits()

    def check(self) -> None:
        """What flights hold is what is counted for them."""
        placed = [flight.placed for flight in self._flights.values() if flight.placed]
        assert len(placed) == self.pool.num_in_flight
        self.pool.check()
        self.index.check()
        self.speculation.check()
        self.siblings.check(each.sibling for each in placed if each.sibling)
        self.fetches.check(each.fetch for each in placed if each.fetch)
        self.records.check()

    def _begin(self, ask: Ask, now: float) -> Flight:
        """A session stays on one side of a canary. Raises InvalidRequest. Where the policy in force
        knows the class, that is no fault of the caller's but of the policy on trial."""
        session = ask.hints.session_key
        live = self.generations.choose(f"{ask.tenant}\0{session}" if session else ask.request_id)
        record = self.records.begin(ask.request_id, live, ask.arrived_at)
        try:
            targets = targets_of(ask.hints, live.policy)
        except InvalidRequest as error:
            known = self.generations.active.policy.service_class(ask.hints.service_class)
            fate = Fate.CANCELLED if known is None else Fate.FAILED
            self.records.ended(record, fate, now, error=error.message)
            raise
        flight = Flight(
            ask=ask, record=record, session=session_id(ask.tenant, session), targets=targets
        )
        self._flights[ask.request_id] = flight
        return flight

    def _gathered(
        self, flight: Flight, snapshot: PoolSnapshot, excluded: frozenset[WorkerId]
    ) -> tuple[PlacementRequest, GrainHash | None]:
        """What is known of it: what it wants, what it may use, what is held of it. And the last
        grain that any worker holds."""
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

    def _check_in_time(
        self, request: PlacementRequest, decision: Decision, snapshot: PoolSnapshot, policy: Policy
    ) -> None:
        """Raises Overloaded."""
        if is_late(request, decision):
            self.tenants.late(snapshot.now)
        rejected = rejection(request, decision, snapshot, policy.admission, self.observed)
        if rejected is not None:
            raise self._rejected(request.service_class, rejected, snapshot.now)

    def _rejected(self, service: ServiceClass, rejected: Rejection, now: float) -> Overloaded:
        self.observed.attainment.of(service.name).num_rejected += 1
        after_s = self.returns.after_s(rejected, now)
        sentence = f"{rejected.reason}: try again in {after_s:.1f} s."
        return Overloaded(sentence, retry_after_s=after_s)

    def _booked(
        self,
        flight: Flight,
        request: PlacementRequest,
        decision: Decision,
        snapshot: PoolSnapshot,
        last_matched: GrainHash | None,
    ) -> Decision:
        """Returns it with the source that it is told, too."""
        ask, policy, now = flight.ask, flight.record.live.policy, snapshot.now
        computing, is_first = decision.placement.computing, not flight.num_placed
        position = snapshot.loads.positions[computing]
        decision, fetch = self._with_source(decision, ask, request.num_ready_at(position), snapshot)
        booking = _booking(decision, ask)
        self.pool.book(booking)
        expectation = None
        if policy.speculates:
            missing = ask.hashes[request.num_held_at(position) :]
            expectation = self.speculation.expect(computing, missing, now)
        flight.placed = Placed(
            decision=decision,
            at_s=now,
            booking=booking,
            expectation=expectation,
            sibling=self.siblings.placed(last_matched, computing),
            fetch=fetch,
        )
        flight.is_taken_on = True
        flight.num_placed += 1
        self.sessions.remember(flight.session, decision.placement.decode, now, policy.sessions)
        if is_first:
            self.tenants.charge(ask.tenant, gpu_s(request, decision, snapshot), now)
        self.observed.placed(flight.targets, decision, now, is_first=is_first)
        self.counters.num_placed += 1
        self.counters.num_moved += not is_first
        return decision

    def _with_source(
        self, decision: Decision, ask: Ask, num_ready: int, snapshot: PoolSnapshot
    ) -> tuple[Decision, Missing | None]:
        """With a source, if it counts on a prefix that another request fetches: it might come
        first. And what is fetched. `num_ready`: leading grains computed where it is placed."""
        placement = decision.placement
        if num_ready == len(ask.hashes):
            return decision, None
        missing = Missing(placement.computing, ask.hashes[num_ready])
        source = placement.source
        if source is None:
            source = self.fetches.source(missing)
            if source is None or not snapshot.may_fetch(placement.computing, source):
                return decision, None
            placement = replace(
                placement, source=source, num_source_tokens=decision.num_cached_tokens
            )
            decision = replace(decision, placement=placement)
        self.fetches.told(missing, source)
        return decision, missing

    def _begun(self, flight: Flight, num_cached_tokens: int, now: float) -> None:
        placed, record = flight.placed, flight.record
        assert placed is not None, "who is nowhere cannot begin"
        self.pool.begun(placed.booking)
        if placed.expectation:
            self.speculation.computed(placed.expectation, now)
        self._waits_no_more(placed)
        if record.first_token_at is not None:
            return  # it goes on after what another worker sent
        num_predicted = placed.decision.num_cached_tokens
        hits = self._hits.setdefault(placed.decision.placement.computing, Hits())
        hits.num_predicted += num_predicted
        hits.num_actual += num_cached_tokens
        self.counters.num_predicted_hits += num_predicted
        self.counters.num_actual_hits += num_cached_tokens
        self.records.first_token(record, num_cached_tokens, now)
        self.observed.first_token(flight, placed, num_cached_tokens, now)

    def _left(self, flight: Flight) -> None:
        placed, flight.placed = flight.placed, None
        if placed is None:
            return
        self.pool.release(placed.booking)
        if placed.expectation:
            self.speculation.settle(placed.expectation)
        self._waits_no_more(placed)

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
