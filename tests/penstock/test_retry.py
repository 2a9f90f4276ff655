"""The retry rules, with the clock and the dice in hand."""

import grpc
import pytest

from penstock.errors import (
    DeadlineExceededError,
    DuplicateRequestError,
    OverloadedError,
    QuotaError,
)
from penstock.retry import Attempts, RetryBudget, RetryPolicy


def shed(retry_after: float | None = None) -> OverloadedError:
    return OverloadedError("busy", code=grpc.StatusCode.UNAVAILABLE, retry_after=retry_after)


def attempts(budget: RetryBudget | None = None, timeout: float | None = None) -> Attempts:
    return Attempts(
        budget or RetryBudget(RetryPolicy()),
        timeout,
        clock=lambda: 100.0,
        dice=lambda low, high: high,
    )


def test_the_delay_doubles_below_its_ceiling() -> None:
    policy = RetryPolicy(max_attempts=9, max_backoff=1.0, max_budget=100)
    call = attempts(RetryBudget(policy))
    delays = [call.delay_after(shed()) for _ in range(5)]
    assert delays == pytest.approx([0.2, 0.4, 0.8, 1.0, 1.0])


def test_the_server_says_how_long() -> None:
    assert attempts().delay_after(shed(retry_after=2.0)) == pytest.approx(2.4)


def test_only_unavailable_is_retried() -> None:
    error = QuotaError("no", code=grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=1.0)
    with pytest.raises(QuotaError):
        attempts().delay_after(error)


def test_an_echo_of_an_earlier_attempt_is_waited_for() -> None:
    echo = DuplicateRequestError("in flight", code=grpc.StatusCode.ALREADY_EXISTS)
    with pytest.raises(DuplicateRequestError):
        attempts().delay_after(echo)  # another's request
    call = attempts()
    call.delay_after(shed())
    call.delay_after(echo)


def test_calls_share_a_budget_that_success_refills() -> None:
    budget = RetryBudget(RetryPolicy(max_budget=4))
    attempts(budget).delay_after(shed())
    with pytest.raises(OverloadedError):
        attempts(budget).delay_after(shed())  # half of the budget is gone
    for _ in range(15):
        attempts(budget).succeeded()
    attempts(budget).delay_after(shed())


def test_attempts_share_one_deadline() -> None:
    now = [0.0]
    call = Attempts(RetryBudget(RetryPolicy()), 5.0, clock=lambda: now[0])
    now[0] = 2.0
    assert call.remaining() == pytest.approx(3.0)
    now[0] = 5.0
    with pytest.raises(DeadlineExceededError):
        call.remaining()
