"""Placing requests in a running router: reads the index and the pool, asks the policy, and keeps
count of what was placed until it ends. Synchronous; time comes in as an argument.

The simulator runs this very class in virtual time. Knows no stream and no socket.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from cluster.types import GrainHash, Incarnation, WorkerId
from router.index import PrefixIndex
from router.policy import Decision, PlacementRequest, Policy, PolicyState, place
from router.pool import Booking, Pool
from router.speculation import Speculation

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
    _state: PolicyState = field(init=False)

    def __post_init__(self) -> None:
        self._state = self.policy.begin(self.seed)

    def place(
        self, ask: Ask, now: float, excluded: frozenset[WorkerId] = frozenset()
    ) -> Decision | None:
        """Books the workers that it chooses, until `release`. None: nobody is left."""
        request = self._request(ask, now, excluded)
        snapshot = self.pool.snapshot(now)
        decision, self._state = place(request, snapshot, self._state, self.policy)
        if decision is None:
            return None
        self.pool.book(_booking(decision, ask))
        if self.policy.speculates:
            placement = decision.placement
            computing = placement.prefill or placement.decode
            self.speculation.expect(ask.request_id, computing, ask.hashes, now)
        self.counters.num_placed += 1
        self.counters.num_moved += 1 if excluded else 0
        return decision

    def first_token(
        self, request_id: str, decision: Decision, num_cached_tokens: int, now: float
    ) -> None:
        """Its prompt is computed; so much of it was cached."""
        self.continued(request_id, now)
        self.counters.num_predicted_hits += decision.num_cached_tokens
        self.counters.num_actual_hits += num_cached_tokens

    def continued(self, request_id: str, now: float) -> None:
        """The same of a request that goes on at another worker: its hits were counted before."""
        self.pool.first_token(request_id)
        self.speculation.computed(request_id, now)

    def release(self, request_id: str) -> None:
        """It has ended, or will be placed again."""
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

    def _request(self, ask: Ask, now: float, excluded: frozenset[WorkerId]) -> PlacementRequest:
        matched, expected = self.index.match(ask.hashes), NOTHING
        if self.policy.speculates:
            expected = self.speculation.match(ask.hashes, matched, now)
        return PlacementRequest(
            num_prompt_tokens=ask.num_prompt_tokens,
            max_tokens=ask.max_tokens,
            num_choices=ask.num_choices,
            age_s=now - ask.arrived_at,
            grain_tokens=self.hash_grain,
            num_ready=matched,
            num_expected=expected,
            excluded=excluded,
        )


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
