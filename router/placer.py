"""Placing requests in a running router: reads the index and the pool, asks the policy, and keeps
count of what was placed until it ends. Synchronous; time comes in as an argument.

The simulator runs this very class in virtual time. Knows no stream and no socket.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from cluster.types import GrainHash, Incarnation, RoutingHints, WorkerId
from router.index import PrefixIndex
from router.lengths import Kind
from router.observed import Observed, Placed
from router.policy import Decision, PlacementRequest, Policy, PolicyState, place
from router.policy_settings import ServiceClass
from router.pool import Booking, Pool
from router.sessions import Sessions, session_id
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
class Placer:
    pool: Pool
    index: PrefixIndex
    hash_grain: int
    policy: Policy = field(default_factory=Policy)
    seed: int = 0
    speculation: Speculation = field(default_factory=Speculation)
    counters: PlacerCounters = field(default_factory=PlacerCounters)
    sessions: Sessions = field(default_factory=Sessions)
    observed: Observed = field(default_factory=Observed)
    _placed: dict[str, Placed] = field(default_factory=dict)
    _state: PolicyState = field(init=False)

    def __post_init__(self) -> None:
        self._state = self.policy.begin(self.seed)

    def place(
        self, ask: Ask, now: float, excluded: frozenset[WorkerId] = frozenset()
    ) -> Decision | None:
        """Books the workers that it chooses, until `release`. None: nobody is left.

        Raises InvalidRequest for a class that the policy does not know.
        """
        targets = targets_of(ask.hints, self.policy)
        request = self._request(ask, targets, now, excluded)
        snapshot = self.pool.snapshot(now)
        decision, self._state = place(request, snapshot, self._state, self.policy)
        if decision is None:
            return None
        self.pool.book(_booking(decision, ask))
        if self.policy.speculates:
            placement = decision.placement
            computing = placement.prefill or placement.decode
            self.speculation.expect(ask.request_id, computing, ask.hashes, now)
        self._count(ask, targets, decision, now, is_moved=bool(excluded))
        return decision

    def first_token(
        self, request_id: str, decision: Decision, num_cached_tokens: int, now: float
    ) -> None:
        """Its prompt is computed; so much of it was cached."""
        self.continued(request_id, now)
        self.counters.num_predicted_hits += decision.num_cached_tokens
        self.counters.num_actual_hits += num_cached_tokens
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

    def leave(self, worker: WorkerId, incarnation: Incarnation) -> None:
        """A life of it is over, and with it what it held and would have computed."""
        self.pool.leave(worker, incarnation)
        self.index.purge(worker, incarnation)
        self.speculation.forget(worker)

    def check(self) -> None:
        self.pool.check()
        self.index.check()
        self.speculation.check()
        assert len(self._placed) == self.pool.num_in_flight

    def _request(
        self, ask: Ask, targets: ServiceClass, now: float, excluded: frozenset[WorkerId]
    ) -> PlacementRequest:
        session = session_id(ask.tenant, ask.hints.session_key)
        matched, expected = self.index.match(ask.hashes), NOTHING
        if self.policy.speculates:
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
            session_worker=self.sessions.worker(session, now, self.policy.sessions),
        )

    def _count(
        self, ask: Ask, targets: ServiceClass, decision: Decision, now: float, *, is_moved: bool
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
        self.sessions.remember(session, decision.placement.decode, now, self.policy.sessions)
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
