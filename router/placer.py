"""Placing requests in a running router: gathers what is known of one, asks the policy, and keeps
book of it until its end. Synchronous; time comes in as an argument.

The simulator runs this very class in virtual time. Knows no stream and no socket.
"""

from collections.abc import Iterator
from dataclasses import InitVar, dataclass, field
from typing import assert_never

from cluster.errors import InvalidRequest
from cluster.types import Role, WorkerId
from router.books import Books
from router.decision import Attempt, Decision, place
from router.early_rejection import EarlyRejection
from router.flight import Ask, Begun, Ended, Event, Flight, Left
from router.index import PrefixIndex
from router.policy import Policy, targets_of
from router.policy_settings import ServiceClass
from router.pool import Pool
from router.records import Fate, Record, Records
from router.rollout.generations import Generations
from router.sessions import session_id


@dataclass(slots=True, eq=False)
class Placer:
    pool: Pool
    index: PrefixIndex
    hash_grain: InitVar[int]
    generations: Generations = field(default_factory=lambda: Generations(Policy()))
    records: Records = field(default_factory=Records)
    books: Books = field(init=False)
    early_rejection: EarlyRejection = field(init=False)
    _flights: dict[str, Flight] = field(default_factory=dict)  # by request id

    def __post_init__(self, hash_grain: int) -> None:
        self.books = Books(self.pool, self.index, hash_grain, self.records)
        self.early_rejection = EarlyRejection(self.books.observed, self.books.tenants)

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
        request, last_matched = self.books.look_up(flight, snapshot, excluded)
        decision, live.state = place(request, snapshot, state, policy)
        attempt = Attempt(request, snapshot, state, policy, decision)
        refusal = None if flight.is_taken_on else self.early_rejection.refusal(attempt)
        decision = self.books.decided(flight, attempt, last_matched, is_refused=refusal is not None)
        if refusal is not None:
            raise refusal
        return decision

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
            refusal = self.early_rejection.refusal_of_wait(flight.targets, waits_s, admission, now)
            if refusal is not None:
                raise refusal
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
                self.books.begun(flight, event.num_cached_tokens, now)
            case Left():
                self.books.left(flight)
            case Ended():
                del self._flights[request_id]
                self.books.ended(flight, event, now)
            case _:
                assert_never(event)
        return flight.record

    def record(self, request_id: str) -> Record | None:
        """Gives the record of a request that is in flight, or remembered."""
        flight = self._flights.get(request_id)
        return flight.record if flight else self.records.find(request_id)

    @property
    def in_flight(self) -> Iterator[Record]:
        return (flight.record for flight in self._flights.values())

    def check(self) -> None:
        """Checks that what flights hold is what is counted for them."""
        self.books.check(self._flights.values())

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
