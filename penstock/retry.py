"""When a call is sent again: only where nothing was executed, a few times, within a budget that
all calls of a client share. Pure: it is given its clock and its dice."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

from penstock.errors import DeadlineExceededError, PenstockError


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """`max_attempts=1` turns retries off."""

    max_attempts: int = 3
    initial_backoff: float = 0.2  # seconds; doubles each attempt, drawn at random below that
    max_backoff: float = 5.0
    # The budget, as in gRPC's retryThrottling: a failure costs one, a success gives a tenth
    # back; below half of the maximum nothing is retried.
    max_budget: float = 10.0
    budget_ratio: float = 0.1


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


@dataclass(slots=True, eq=False)
class Attempts:
    """The attempts of one call."""

    budget: RetryBudget
    timeout: float | None = None
    clock: Callable[[], float] = time.monotonic
    dice: Callable[[float, float], float] = random.uniform
    num_failed: int = 0
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def remaining(self) -> float | None:
        """Seconds left for the next attempt; raises when there are none."""
        if self.timeout is None:
            return None
        left = self.started + self.timeout - self.clock()
        if left <= 0:
            raise DeadlineExceededError(
                f"The deadline of {self.timeout:g} s passed before an attempt could be made.",
                metadata={"tokens_emitted": "0"},
            )
        return left

    def succeeded(self) -> None:
        self.budget.succeeded()

    def delay_after(self, error: PenstockError) -> float:
        """Seconds to wait before the next attempt; raises `error` where there is none."""
        self.num_failed += 1
        if not self._may_retry(error):
            raise error
        self.budget.failed()
        policy = self.budget.policy
        is_forbidden = error.retry_after is not None and error.retry_after < 0
        if is_forbidden or self.num_failed >= policy.max_attempts or not self.budget.allows_retry:
            raise error
        delay = self._backoff(error.retry_after)
        if self.timeout is not None and self.clock() + delay >= self.started + self.timeout:
            raise error
        return delay

    def _may_retry(self, error: PenstockError) -> bool:
        if error.code is grpc.StatusCode.ALREADY_EXISTS:
            # Our own earlier attempt, whose lost connection the cluster has yet to notice.
            return self.num_failed > 1
        return error.code is grpc.StatusCode.UNAVAILABLE

    def _backoff(self, asked: float | None) -> float:
        policy = self.budget.policy
        if asked is not None:
            # A little more than the server asked for, so that clients do not come back at once.
            return asked + self.dice(0.0, 0.2 * asked)
        ceiling = min(policy.max_backoff, policy.initial_backoff * 2 ** (self.num_failed - 1))
        return self.dice(0.0, ceiling)
