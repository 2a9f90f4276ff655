"""The retry rules, with the clock and the dice in hand."""

from typing import Any

import grpc
import pytest

from penstock.errors import (
    DeadlineExceededError,
    DuplicateRequestError,
    InvalidRequestError,
    NoWorkerError,
    OverloadedError,
    PenstockError,
    QuotaError,
    RequestCancelledError,
    UnreachableError,
)
from penstock.retry import Attempts, Reach, RetryBudget, RetryPolicy

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


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


# -- a server that is away -------------------------------------------------------------------


class World:
    """A clock that stands, and the attempts of one call against it."""

    def __init__(
        self, timeout: float | None = None, budget: RetryBudget | None = None, **reach: Any
    ) -> None:
        self.now = 50.0
        self.budget = budget or RetryBudget(RetryPolicy())
        self.reach = Reach(address="there:1", **reach)
        self.call = Attempts(
            self.budget, timeout, self.reach, lambda: self.now, dice=lambda low, high: high
        )

    def waited(self, error: PenstockError) -> float:
        """Fails with `error` again and again; seconds until the call ends."""
        began = self.now
        try:
            while True:
                self.now += self.call.delay_after(error)
                self.call.remaining()
        except PenstockError as last:
            self.last = last
        return self.now - began


def refused_connection() -> UnreachableError:
    said = "failed to connect to all addresses; last error: Connection refused"
    return UnreachableError(said, code=UNAVAILABLE)


def broken_connection() -> UnreachableError:
    return UnreachableError("Socket closed", code=UNAVAILABLE)


def draining(retry_after: float | None = 1.0) -> OverloadedError:
    return OverloadedError("going", reason="DRAINING", code=UNAVAILABLE, retry_after=retry_after)


def no_worker() -> NoWorkerError:
    return NoWorkerError("none yet", code=UNAVAILABLE, retry_after=1.0)


def test_a_server_that_was_never_there_is_given_the_connect_timeout() -> None:
    world = World(connect_timeout=5.0)
    assert world.waited(refused_connection()) == pytest.approx(5.0, abs=0.01)
    assert isinstance(world.last, UnreachableError)
    assert world.last.message.startswith("there:1 could not be reached within 5 s: failed to")


def dropped() -> RequestCancelledError:
    """As gRPC ends what a server had taken and not looked at when it ended."""
    return RequestCancelledError("CANCELLED", code=grpc.StatusCode.CANCELLED)


@pytest.mark.parametrize("error", [refused_connection(), broken_connection(), dropped()])
def test_a_server_that_was_there_is_waited_for(error: PenstockError) -> None:
    world = World(reconnect_timeout=30.0, was_reached=True)
    assert world.waited(error) == pytest.approx(30.0, abs=0.01)
    assert isinstance(world.last, UnreachableError)
    assert world.last.message.startswith("there:1 did not come back within 30 s: ")


def test_a_draining_server_without_a_hint_is_waited_for_as_long() -> None:
    world = World(reconnect_timeout=30.0)
    assert world.waited(draining(None)) == pytest.approx(30.0, abs=0.01)
    assert isinstance(world.last, OverloadedError)


@pytest.mark.parametrize("error", [draining(), no_worker()])
def test_a_hint_of_a_server_that_is_going_or_coming_is_followed(error: PenstockError) -> None:
    world = World(reconnect_timeout=10.0)  # it answers, so it was reached
    assert 8.0 < world.waited(error) < 10.0
    assert world.last is error
    assert world.budget.level == world.budget.policy.max_budget


def test_a_call_with_a_deadline_waits_until_then() -> None:
    world = World(60.0, reconnect_timeout=1.0, was_reached=True)
    assert world.waited(refused_connection()) == pytest.approx(60.0, abs=0.01)
    assert isinstance(world.last, DeadlineExceededError)
    assert "there:1" in world.last.message
    assert world.last.phase == "connect"


def test_a_deadline_ends_the_wait_for_a_server_that_was_never_there() -> None:
    world = World(2.0, connect_timeout=5.0)
    assert world.waited(refused_connection()) == pytest.approx(2.0, abs=0.01)
    assert "there:1" in world.last.message


def test_a_connection_that_broke_had_been_one() -> None:
    world = World(connect_timeout=5.0, reconnect_timeout=20.0)
    world.call.delay_after(broken_connection())
    assert world.reach.was_reached
    assert world.waited(refused_connection()) == pytest.approx(20.0, abs=0.01)


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_nothing_is_waited_for_where_the_timeouts_are_nothing(timeout: float | None) -> None:
    world = World(timeout, connect_timeout=0, reconnect_timeout=0)
    assert world.waited(refused_connection()) == 0.0
    assert world.waited(broken_connection()) == 0.0
    assert world.last.message == "There is no connection to there:1: Socket closed"
    assert world.waited(no_worker()) == pytest.approx(
        2.4, abs=0.01
    )  # two more tries, as for any refusal


def test_turning_retries_off_turns_waiting_off() -> None:
    world = World(budget=RetryBudget(RetryPolicy(max_attempts=1)), was_reached=True)
    assert world.waited(refused_connection()) == 0.0
    assert world.waited(draining()) == 0.0


def test_an_outage_spends_nothing_of_what_later_calls_may_need() -> None:
    budget = RetryBudget(RetryPolicy())
    for _ in range(100):
        World(budget=budget, was_reached=True).waited(refused_connection())
    assert attempts(budget).delay_after(shed(retry_after=1.0)) == pytest.approx(1.2)


def test_a_refusal_after_an_outage_is_the_first_of_its_kind() -> None:
    world = World(was_reached=True)
    for _ in range(10):
        world.call.delay_after(refused_connection())
    assert world.call.delay_after(shed(retry_after=1.0)) == pytest.approx(1.2)


def test_the_echo_of_an_attempt_that_an_outage_cut_off_is_waited_for_as_long() -> None:
    world = World(reconnect_timeout=30.0, was_reached=True)
    world.call.delay_after(broken_connection())
    echo = DuplicateRequestError("in flight", code=grpc.StatusCode.ALREADY_EXISTS)
    assert world.waited(echo) == pytest.approx(30.0, abs=0.01)
    assert world.last is echo


def test_each_outage_is_waited_for_anew() -> None:
    world = World(reconnect_timeout=10.0, was_reached=True)
    world.now += world.call.delay_after(broken_connection())
    world.now += world.call.delay_after(shed(retry_after=5.0))  # it was back
    assert world.waited(broken_connection()) == pytest.approx(10.0, abs=0.01)


def test_the_time_in_which_a_server_had_the_request_is_no_outage() -> None:
    world = World(reconnect_timeout=10.0, was_reached=True)
    for _ in range(5):
        world.now += 100.0
        world.now += world.call.delay_after(broken_connection())
        world.call.remaining()  # sent again
    assert 8.0 < world.waited(refused_connection()) < 10.0


def test_a_server_that_breaks_every_connection_is_not_asked_for_ever() -> None:
    world = World(reconnect_timeout=10.0, was_reached=True)
    assert world.waited(broken_connection()) == pytest.approx(10.0, abs=0.01)


def test_clients_that_wait_do_not_come_back_together() -> None:
    pauses = {
        Attempts(RetryBudget(RetryPolicy())).delay_after(refused_connection()) for _ in "abcde"
    }
    assert len(pauses) == 5
    assert max(pauses) <= 1.0


@pytest.mark.parametrize("name", ["connect_timeout", "reconnect_timeout"])
@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_a_wait_that_is_no_time_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Reach(**{name: value})
    assert caught.value.field == name
