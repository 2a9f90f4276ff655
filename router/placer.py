"""Placing requests in a running router: reads the index and the pool, asks the policy, and keeps
count of what was placed until it ends. Synchronous; time comes in as an argument.

The simulator runs this very class in virtual time. Knows no stream and no socket.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from cluster.errors import InvalidRequest, Overloaded
from cluster.types import GrainHash, Incarnation, Role, RoutingHints, WorkerId
from router.attempt import Attempt
from router.early_rejection import (
    Rejection,
    Returns,
    is_late,
    rejection,
    rejection_of_wait,
)
from router.index import PrefixIndex
from router.learned.lengths import Kind
from router.learned.observed import Observed, Placed
from router.policy import Decision, PlacementRequest, Policy, place
from router.policy_settings import ServiceClass
from router.pool import Booking, Pool, PoolSnapshot
from router.records import Fate, Record, Records
from router.rollout.generations import Generations
from router.sessions import Sessions, session_id
from router.shares import TenantUse, gpu_s
from router.speculation import Speculation
from router.targets import targets_of

DEFAULT_TENANT = "default"  # until callers are authenticated
NO_HINTS = RoutingHints()
NOTHING: Mapping[WorkerId, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request, as far as placing it goes."""

    request_id: str
    hashes: Sequence[GrainHash]  # of the prompt's complete grains; empty: reuses no cache
    num_prompt_tokens: int
    max_tokens: int
    arrived_at: float  # router's monotonic clock
    num_choices: int = 1
    tenant: str = DEFAULT_TENANT
    hints: RoutingHints = NO_HINTS


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
    speculation: Speculation = field(default_factory=Speculation)
    counters: PlacerCounters = field(default_factory=PlacerCounters)
    sessions: Sessions = field(default_factory=Sessions)
    observed: Observed = field(default_factory=Observed)
    tenants: TenantUse = field(default_factory=TenantUse)
    returns: Returns = field(default_factory=Returns)
    _placed: dict[str, Placed] = field(default_factory=dict)
    _hits: dict[WorkerId, Hits] = field(default_factory=dict)

    def place(
        self,
        ask: Ask,
        now: float,
        excluded: frozenset[WorkerId] = frozenset(),
        *,
        is_again: bool = False,
        has_waited: bool = False,
    ) -> Decision | None:
        """Books the workers that it chooses, until `release`. None: nobody is left. Until `end`
        the request is placed by the policy that was in force at first.

        Raises InvalidRequest for a class that the policy does not know; Overloaded for a new
        request that cannot be served in time. Who was taken on is placed whatever happens: placed
        before (`is_again`), or let wait for a worker (`has_waited`).
        """
        record = self.records.pinned(ask.request_id) or self._pin(ask)
        live, policy = record.live, record.live.policy
        targets = self._targets(ask, record)
        request = self._request(ask, policy, targets, now, excluded)
        snapshot, state = self.pool.snapshot(now), live.state
        decision, live.state = place(request, snapshot, state, policy)
        self.records.attempted(record, Attempt(request, snapshot, state, policy, decision))
        if decision is None:
            return None
        if not is_again:
            if not has_waited:
                self._admit(request, policy, decision, snapshot)
            self.tenants.charge(ask.tenant, gpu_s(request, decision, snapshot), now)
        self.pool.book(_booking(decision, ask))
        if policy.speculates:
            computing = decision.placement.computing
            missing = ask.hashes[request.num_held(computing) :]
            self.speculation.expect(ask.request_id, computing, missing, now)
        self._count(ask, policy, targets, decision, now, is_moved=is_again)
        return decision

    def taken_on(self, ask: Ask, now: float, *, is_again: bool) -> ServiceClass:
        """Takes on a request that has to wait for a worker; returns what its class promises.

        Raises InvalidRequest as `place`; Overloaded for a new request whose first token would,
        with the wait that is predicted, be later than its policy allows.
        """
        record = self.records.pinned(ask.request_id) or self._pin(ask)
        targets = self._targets(ask, record)
        wait_s = self.pool.absences.return_in_s(Role.DECODE, now)
        if wait_s is not None and not is_again:
            waits_s = now - ask.arrived_at + wait_s
            rejected = rejection_of_wait(targets, waits_s, record.live.policy.admission)
            if rejected is not None:
                raise self._rejected(targets, rejected, now)
        return targets

    def first_token(
        self, request_id: str, decision: Decision, num_cached_tokens: int, now: float
    ) -> None:
        """Its prompt is computed; so much of it was cached."""
        self.continued(request_id, now)
        self.counters.num_predicted_hits += decision.num_cached_tokens
        self.counters.num_actual_hits += num_cached_tokens
        hits = self._hits.setdefault(decision.placement.computing, Hits())
        hits.num_predicted += decision.num_cached_tokens
        hits.num_actual += num_cached_tokens
        self.records.first_token(request_id, num_cached_tokens, now)
        self.observed.first_token(self._placed[request_id], num_cached_tokens, now)

    def continued(self, request_id: str, now: float) -> None:
        """The same of a request that goes on at another worker: its hits were counted before."""
        self.pool.first_token(request_id)
        self.speculation.computed(request_id, now)

    def finished(self, request_id: str, num_tokens: int, now: float) -> None:
        """Its answer is whole: so many tokens, of all its choices. `release` follows."""
        self.observed.finished(self._placed[request_id], num_tokens, now)

    def release(self, request_id: str) -> None:
        """It has ended, or will be placed again."""
        self._placed.pop(request_id, None)
        self.pool.release(request_id)
        self.speculation.settle(request_id)

    def end(
        self, request_id: str, fate: Fate, now: float, *, num_tokens: int = 0, error: str = ""
    ) -> Record | None:
        """Nothing more will come of it: released, whatever it was placed on."""
        return self.records.ended(request_id, fate, now, num_tokens=num_tokens, error=error)

    def leave(self, worker: WorkerId, incarnation: Incarnation) -> None:
        """A life of it is over, and with it what it held and would have computed."""
        self.pool.leave(worker, incarnation)
        self.index.purge(worker, incarnation)
        self.speculation.forget(worker)
        self.observed.local_s.forget(worker)
        self._hits.pop(worker, None)

    def hits_of(self, worker: WorkerId) -> Hits:
        """How good the predictions of its cached tokens were."""
        return self._hits.get(worker) or Hits()

    def check(self) -> None:
        self.pool.check()
        self.index.check()
        self.speculation.check()
        self.records.check()
        assert len(self._placed) == self.pool.num_in_flight

    def _pin(self, ask: Ask) -> Record:
        """A session stays on one side of a canary."""
        session = ask.hints.session_key
        key = f"{ask.tenant}\0{session}" if session else ask.request_id
        return self.records.begin(ask.request_id, self.generations.choose(key), ask.arrived_at)

    def _targets(self, ask: Ask, record: Record) -> ServiceClass:
        """Raises InvalidRequest. Where the policy in force knows the class, that is no fault of
        the caller's but of the policy on trial."""
        try:
            return targets_of(ask.hints, record.live.policy)
        except InvalidRequest:
            known = self.generations.active.policy.service_class(ask.hints.service_class)
            record.is_blameless = known is None
            raise

    def _request(
        self,
        ask: Ask,
        policy: Policy,
        targets: ServiceClass,
        now: float,
        excluded: frozenset[WorkerId],
    ) -> PlacementRequest:
        session = session_id(ask.tenant, ask.hints.session_key)
        matched, expected = self.index.match(ask.hashes), NOTHING
        if policy.speculates:
            expected = self.speculation.match(ask.hashes, matched, now)
        return PlacementRequest(
            num_prompt_tokens=ask.num_prompt_tokens,
            max_tokens=ask.max_tokens,
            num_choices=ask.num_choices,
            num_output_tokens=self.observed.lengths.predicted(
                Kind(targets.name, ask.tenant), ask.max_tokens
            ),
            service_class=targets,
            age_s=now - ask.arrived_at,
            grain_tokens=self.hash_grain,
            num_ready=matched,
            num_expected=expected,
            excluded=excluded,
            session_worker=self.sessions.worker(session, now, policy.sessions),
            tenant_excess=self.tenants.excess(ask.tenant, policy.tenants, now),
        )

    def _admit(
        self, request: PlacementRequest, policy: Policy, decision: Decision, snapshot: PoolSnapshot
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

    def _count(
        self,
        ask: Ask,
        policy: Policy,
        targets: ServiceClass,
        decision: Decision,
        now: float,
        *,
        is_moved: bool,
    ) -> None:
        self._placed[ask.request_id] = Placed(
            tenant=ask.tenant,
            targets=targets,
            decision=decision,
            arrived_s=ask.arrived_at,
            placed_s=now,
            num_choices=ask.num_choices,
        )
        session = session_id(ask.tenant, ask.hints.session_key)
        self.sessions.remember(session, decision.placement.decode, now, policy.sessions)
        self.observed.placed(decision, now)
        self.observed.attainment.of(targets.name).num_placed += not is_moved
        self.counters.num_placed += 1
        self.counters.num_moved += is_moved


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
