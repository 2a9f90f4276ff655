"""One request at the router, from its first placement to its end: what is asked, what is held for
it where it is placed, what came of it; and what can happen to it.

Whoever keeps book of requests gives the flight what it needs back, and has no table of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cluster.types import GrainHash, RoutingHints
from router.decision import Decision
from router.fetches import Missing
from router.learned.lengths import AnswerKind
from router.learned.traffic import Arrival
from router.policy_settings import DEFAULT_TENANT, ServiceClass
from router.pool import Booking
from router.records import Fate, Record
from router.sessions import SessionId
from router.siblings import Sibling
from router.speculation import Expectation

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


class Begun(NamedTuple):
    """A worker sent its first message: the prompt is computed."""

    num_cached_tokens: int  # as the first worker says


class Left(NamedTuple):
    """Its worker has nothing to do with it any more: it will be placed again."""


class Ended(NamedTuple):
    """Nothing more will come of it, wherever it was placed."""

    fate: Fate
    num_tokens: int = 0  # of all its choices together, whoever computed them
    error: str = ""


Event = Begun | Left | Ended


@dataclass(slots=True, eq=False)
class Placed:
    """Holds what one placement has of the workers, until its worker is left."""

    decision: Decision
    at_s: float
    booking: Booking
    expectation: Expectation | None
    sibling: Sibling | None  # until its first token, as the next
    fetch: Missing | None
    first_s: float | None = None  # None: no token yet, or its first ones came from elsewhere


@dataclass(slots=True, eq=False, kw_only=True)
class Flight:
    ask: Ask
    record: Record  # pins it to the policy that was in force at first
    session: SessionId | None
    targets: ServiceClass  # its class's, narrowed by its budgets
    is_taken_on: bool = False  # it will be placed whatever happens
    num_placed: int = 0
    placed: Placed | None = None  # where it is now
    arrival: Arrival | None = None  # None: nobody asks what comes

    @property
    def kind(self) -> AnswerKind:
        return AnswerKind(self.targets.name, self.ask.tenant)
