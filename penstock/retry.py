"""Decides when a call is sent again: only where nothing was executed, or where what was goes on.
Two cases are told apart. The server is away: no connection, or it says itself that it goes or has
nobody yet. Then it is waited for, and that costs nothing but time. Or it is there and refuses: then
it is asked a few times more, within a budget that all calls of a client share. Pure: it is given
its clock and its dice."""

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

from penstock.address import SECURED
from penstock.errors import (
    DRAINING,
    DeadlineExceededError,
    InvalidRequestError,
    NoWorkerError,
    OverloadedError,
    PenstockError,
    RequestCancelledError,
    UnreachableError,
)

MIN_PAUSE, MAX_PAUSE = 0.1, 1.0  # seconds between two looks for a server that is away
TICK = 1e-3  # less is no time to wait: a rest that rounding leaves
# How gRPC begins to say that a call never had a connection; whatever else breaks had one.
NEVER_CONNECTED = ("failed to connect", "errors resolving", "DNS resolution failed")

# What it may be, if it takes connections and ends them, by whether TLS was spoken.
_HUNG_UP = {
    False: ". It may speak TLS alone: dial it as grpcs://HOST:PORT.",
    True: ". It may want a certificate of its clients: give cert_file and key_file.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """`max_attempts=1` turns retries off, and the wait for a server that is away."""

    max_attempts: int = 3  # attempts in all, of a call that is refused
    initial_backoff: float = 0.2  # seconds; doubles each attempt, drawn at random below that
    max_backoff: float = 5.0  # seconds
    # refusals that are paid for, as in gRPC's retryThrottling: each costs one, and below half of
    # this nothing is retried; waiting for the server is free
    max_budget: float = 10.0
    budget_ratio: float = 0.1  # refusals that a success gives back


@dataclass(slots=True, eq=False)
class RetryBudget:
    policy: RetryPolicy
    level: float = field(init=False)

    def __post_init__(self) -> None:
        self.level = self.policy.max_budget

    def succeeded(self) -> None:
        self.level = min(self.policy.max_budget, self.level + self.policy.budget_ratio)

    def failed(self) -> None:
        self.level = max(0.0, self.level - 1)

    @property
    def allows_retry(self) -> bool:
        return self.level > self.policy.max_budget / 2


@dataclass(slots=True, kw_only=True, eq=False)
class Reach:
    """Knows whether a client has ever reached its server, and how long its calls wait for it."""

    address: str = "the server"
    connect_timeout: float = 5.0  # seconds, of a server that was never there; 0: not at all
    reconnect_timeout: float = 30.0  # of one that was, by a call without a deadline
    was_reached: bool = False

    def __post_init__(self) -> None:
        for name in ("connect_timeout", "reconnect_timeout"):
            if not getattr(self, name) >= 0:  # nor is a NaN
                raise InvalidRequestError(
                    f"'{name}' is {getattr(self, name)}: give seconds, 0 or more.",
                    metadata={"field": name},
                )

    def learn(self, error: PenstockError) -> None:
        """A status that the server gave, or a connection that broke, shows that it was there."""
        is_timer = isinstance(error, DeadlineExceededError)  # perhaps our own
        self.was_reached |= _broke(error) or not (is_disconnected(error) or is_timer)


@dataclass(slots=True, eq=False)
class Attempts:
    """The attempts of one call."""

    budget: RetryBudget
    timeout: float | None = None
    reach: Reach = field(default_factory=Reach)
    clock: Callable[[], float] = time.monotonic
    dice: Callable[[float, float], float] = random.uniform
    num_failed: int = 0  # all that were
    num_refused: int = 0  # by a server that was there
    started: float = field(init=False)
    sent: float = field(init=False)  # the present attempt
    away_since: float | None = None  # the server, for this call
    last_error: PenstockError | None = None

    def __post_init__(self) -> None:
        self.started = self.sent = self.clock()

    def remaining(self) -> float | None:
        """Seconds left for the attempt that begins now; raises when there are none."""
        self.sent = self.clock()
        if self.timeout is None:
            return None
        if (left := self._left()) <= 0:
            raise self._too_late()
        return left

    def succeeded(self) -> None:
        self.budget.succeeded()
        self.reach.was_reached = True
        self.away_since = None

    def delay_after(self, error: PenstockError) -> float:
        """Seconds to wait before the next attempt; raises the typed error where there is none."""
        is_echo = error.code is grpc.StatusCode.ALREADY_EXISTS and self.num_failed > 0
        self.num_failed += 1
        self.last_error = error
        self.reach.learn(error)
        self._check_may_repeat(error, is_echo)
        if (is_echo or _is_away(error)) and (patience := self._patience()) > 0:
            return self._wait_for_server(error, patience)
        self.away_since = None
        self._spend(error)
        delay = self._backoff(error.retry_after)
        if delay >= self._left():
            raise error
        return delay

    def _check_may_repeat(self, error: PenstockError, is_echo: bool) -> None:
        """An echo is our own earlier attempt, whose lost connection the cluster has yet to
        notice."""
        if isinstance(error, DeadlineExceededError) and not error.metadata:
            raise self._too_late() if self._left() < 0.1 else error  # our timer has no details
        is_forbidden = error.retry_after is not None and error.retry_after < 0
        is_off = self.budget.policy.max_attempts <= 1
        is_unavailable = error.code is grpc.StatusCode.UNAVAILABLE or is_disconnected(error)
        if is_forbidden or not (is_echo or is_unavailable):
            raise error
        if is_off:
            raise self._given_up(error, 0.0)

    def _spend(self, error: PenstockError) -> None:
        """One refusal more; raises where it was the last."""
        if is_disconnected(error):
            raise self._given_up(error, 0.0)
        self.num_refused += 1
        self.budget.failed()
        if self.num_refused >= self.budget.policy.max_attempts or not self.budget.allows_retry:
            raise error

    # -- a server that is away ---------------------------------------------------------------

    def _patience(self) -> float:
        """Seconds from when it was missed; without end where the call's deadline is the end."""
        reach = self.reach
        if not reach.was_reached:
            return reach.connect_timeout
        has_deadline = self.timeout is not None and reach.reconnect_timeout > 0
        return math.inf if has_deadline else reach.reconnect_timeout

    def _wait_for_server(self, error: PenstockError, patience: float) -> float:
        now = self.clock()
        if self.away_since is None:
            self.away_since = now if self.reach.was_reached else self.started
        elif _broke(error):
            self.away_since += now - self.sent  # it was there, and had the request
        away = now - self.away_since
        if away >= patience:
            raise self._given_up(error, patience)
        left = min(patience - away, self._left())
        if error.retry_after is None:
            # As long again as it has been away, at random, so that not all come at once.
            pause = self.dice(0.5, 1.0) * min(MAX_PAUSE, max(MIN_PAUSE, away))
            return max(TICK, min(left, pause))
        if (delay := self._backoff(error.retry_after)) >= left:
            raise error
        return delay

    def _given_up(self, error: PenstockError, patience: float) -> PenstockError:
        if not is_disconnected(error):
            return error
        address = self.reach.address
        if not patience:
            said = f"There is no connection to {address}"
        elif self.reach.was_reached:
            said = f"{address} did not come back within {patience:g} s"
        else:
            said = f"{address} could not be reached within {patience:g} s"
        hung_up = "Socket closed" in error.message and not _broke(error)
        hint = _HUNG_UP[address.startswith(SECURED)] if hung_up else ""
        message = f"{said}: {error.message}{hint}"
        return UnreachableError(message, code=grpc.StatusCode.UNAVAILABLE)

    def _too_late(self) -> DeadlineExceededError:
        error, timeout = self.last_error, self.timeout or 0.0
        said, phase = f"The deadline of {timeout:g} s passed", {}
        if error is None:
            said += " before an attempt could be made."
        elif is_disconnected(error):
            said += f" while {self.reach.address} was away: {error.message}"
            phase = {"phase": "connect"}
        else:
            said += f" before {self.reach.address} answered."
        code = grpc.StatusCode.DEADLINE_EXCEEDED
        return DeadlineExceededError(said, code=code, metadata={"tokens_emitted": "0", **phase})

    # -- seconds -----------------------------------------------------------------------------

    def _left(self) -> float:
        return math.inf if self.timeout is None else self.started + self.timeout - self.clock()

    def _backoff(self, asked: float | None) -> float:
        policy = self.budget.policy
        if asked is not None:
            # A little more than the server asked for, so that clients do not come back at once.
            return asked + self.dice(0.0, 0.2 * asked)
        ceiling = min(policy.max_backoff, policy.initial_backoff * 2 ** (self.num_refused - 1))
        return self.dice(0.0, ceiling)


def is_disconnected(error: PenstockError) -> bool:
    """Nobody said so: there was no connection, it broke, or the server ended between taking a
    call and looking at it. Then gRPC cancels the call, and we had not."""
    was_said = error.retry_after is not None or error.metadata
    return not was_said and isinstance(error, UnreachableError | RequestCancelledError)


def _broke(error: PenstockError) -> bool:
    """A connection that there was."""
    return is_disconnected(error) and not error.message.startswith(NEVER_CONNECTED)


def _is_away(error: PenstockError) -> bool:
    """Tells whether a server is away: whoever goes, or has no worker yet, says
    it, too."""
    is_draining = isinstance(error, OverloadedError) and error.reason == DRAINING
    return is_disconnected(error) or is_draining or isinstance(error, NoWorkerError)
