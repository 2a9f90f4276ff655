"""Placing requests in a running router: reads the index and the pool, asks the policy, and keeps
count of what was placed until it ends. Synchronous; time comes in as an argument.

The simulator runs this very class in virtual time. Knows no stream and no socket.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

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
from router.fetches import Fetches
from router.index import PrefixIndex
from router.learned.lengths import Kind
from router.learned.observed import Observed, Placed
from router.learned.traffic import Arrival
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

DEFAULT_TENANT = "default"  # until callers are authenticated
NO_HINTS = RoutingHints()


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
    speculation: Speculation = field(init=False)
    fetches: Fetches = field(default_factory=Fetches)
    siblings: Siblings = field(default_factory=Siblings)
    counters: PlacerCounters = field(default_factory=PlacerCounters)
    sessions: Sessions = field(default_factory=Sessions)
    observed: Observed = field(default_factory=Observed)
    tenants: TenantUse = field(default_factory=TenantUse)
    returns: Returns = field(default_factory=Returns)
    _placed: dict[str, Placed] = field(default_factory=dict)
    _hits: dict[WorkerId, Hits] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.speculation = Speculation(self.index.numbering)

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
        snapshot, state = self.pool.snapshot(now), live.state
        request, last_matched = self._request(ask, policy, targets, snapshot, excluded)
        decision, live.state = place(request, snapshot, state, policy)
        if self.observed.traffic.is_kept(now):
            self._came(ask, request, decision)
        self.records.attempted(record, Attempt(request, snapshot, state, policy, decision))
        if decision is None:
            return None
        if not is_again:
            if not has_waited:
                self._admit(request, policy, decision, snapshot)
            self.tenants.charge(ask.tenant, gpu_s(request, decision, snapshot), now)
        self.pool.book(_booking(decision, ask))
        computing = decision.placement.computing
        position = snapshot.loads.positions[computing]
        if policy.speculates:
            missing = ask.hashes[request.num_held_at(position) :]
            self.speculation.expect(ask.request_id, computing, missing, now)
        self.siblings.placed(ask.request_id, last_matched, computing)
        decision = self._with_source(decision, ask, request.num_ready_at(position), snapshot)
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
        if arrival := self.observed.traffic.of(request_id):
            arrival.num_cached_tokens = num_cached_tokens
            arrival.ttft_s = now - arrival.arrived_s

    def continued(self, request_id: str, now: float) -> None:
        """The same of a request that goes on at another worker: its hits were counted before."""
        self.pool.first_token(request_id)
        self.speculation.computed(request_id, now)
        self.siblings.end(request_id)
        self.fetches.end(request_id)

    def finished(self, request_id: str, num_tokens: int, now: float) -> None:
        """Its answer is whole: so many tokens, of all its choices. `release` follows."""
        placed = self._placed[request_id]
        self.observed.finished(placed, num_tokens, now)
        arrival = self.observed.traffic.of(request_id)
        if arrival is not None and arrival.ttft_s is not None:
            num_steps = num_tokens / placed.num_choices
            arrival.num_output_tokens = num_steps
            answer_s = now - arrival.arrived_s - arrival.ttft_s
            arrival.itl_s = answer_s / max(1.0, num_steps - 1.0)

    def release(self, request_id: str) -> None:
        """It has ended, or will be placed again."""
        self._placed.pop(request_id, None)
        self.pool.release(request_id)
        self.speculation.settle(request_id)
        self.siblings.end(request_id)
        self.fetches.end(request_id)

    def end(
        self, request_id: str, fate: Fate, now: float, *, num_tokens: int = 0, error: str = ""
    ) -> Record | None:
        """Nothing more will come of it: released, whatever it was placed on."""
        self.observed.traffic.end(request_id, now, is_lost=fate is Fate.FAILED)
        return self.records.ended(request_id, fate, now, num_tokens=num_tokens, error=error)

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
        self.pool.check()
        self.index.check()
        self.speculation.check()
        self.siblings.check()
        self.fetches.check()
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
        snapshot: PoolSnapshot,
        excluded: frozenset[WorkerId],
    ) -> tuple[PlacementRequest, GrainHash | None]:
        """And the last grain that any worker holds of it."""
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
        session = session_id(ask.tenant, ask.hints.session_key)
        lengths, kind = self.observed.lengths, Kind(targets.name, ask.tenant)
        request = PlacementRequest(
            num_prompt_tokens=ask.num_prompt_tokens,
            max_tokens=ask.max_tokens,
            num_choices=ask.num_choices,
            num_output_tokens=lengths.predicted(kind, ask.max_tokens),
            num_typical_tokens=lengths.typical(kind, ask.max_tokens),
            service_class=targets,
            age_s=now - ask.arrived_at,
            grain_tokens=self.hash_grain,
            num_ready=num_ready,
            num_held=num_held,
            num_siblings=loads.column_of(siblings) if siblings else None,
            excluded=excluded,
            session_worker=self.sessions.worker(session, now, policy.sessions),
            tenant_excess=self.tenants.excess(ask.tenant, policy.tenants, now),
        )
        return request, last_matched

    def _came(self, ask: Ask, request: PlacementRequest, decision: Decision | None) -> None:
        traffic, targets = self.observed.traffic, request.service_class
        if traffic.of(ask.request_id) is None:
            arrival = Arrival(
                arrived_s=ask.arrived_at,
                num_prompt_tokens=ask.num_prompt_tokens,
                num_cached_tokens=decision.num_cached_tokens if decision else 0,
                num_output_tokens=request.num_output_tokens,
                target_ttft_s=targets.ttft_s,
                target_itl_s=targets.itl_s,
                num_reusable=traffic.reuse.of(ask.hashes, self.hash_grain),
            )
            traffic.begin(ask.request_id, arrival)

    def _with_source(
        self, decision: Decision, ask: Ask, num_ready: int, snapshot: PoolSnapshot
    ) -> Decision:
        """The same, if it counts on a prefix that another request fetches: it might come first.
        `num_ready`: leading grains computed where it is placed."""
        placement = decision.placement
        if num_ready == len(ask.hashes):
            return decision
        first_missing = ask.hashes[num_ready]
        if placement.source is None:
            source = self.fetches.source(placement.computing, first_missing)
            if source is None or not snapshot.may_fetch(placement.computing, source):
                return decision
            placement = replace(
                placement, source=source, num_source_tokens=decision.num_cached_tokens
            )
        assert placement.source is not None
        self.fetches.told(ask.request_id, placement.computing, first_missing, placement.source)
        return replace(decision, placement=placement)

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
