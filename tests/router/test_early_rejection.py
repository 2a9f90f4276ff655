"""Whom the router refuses before it costs anything, as values."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.types import ErrorQuantiles, Placement, WorkerId
from router.decision import Decision, PlacementRequest, place
from router.early_rejection import (
    MAX_RETRY_S,
    MIN_RETRY_S,
    EarlyRejection,
    Rejection,
    broken_promise,
    error_factor,
    limit_s,
    rejection,
)
from router.forecast import ErrorFactors, decode_then, forecast
from router.learned.accuracy import Compared
from router.learned.observed import Observed
from router.load import Load
from router.policy import Policy
from router.policy_settings import DEFAULT_CLASS, AdmissionRules, Quantile, ServiceClass
from router.shares import TenantUse
from tests.router.pool_samples import load, snapshot

CHAT = ServiceClass(name="chat", ttft_s=2.0, itl_s=0.05)
STRICT = AdmissionRules(rejects_early=True, slack=1.0, quantile=Quantile.P50)
EXACT = ErrorFactors()
A = WorkerId("a")


def prompt(num_tokens: int = 1000, **changes: Any) -> PlacementRequest:
    values = {"service_class": CHAT, "num_output_tokens": 100.0, **changes}
    return PlacementRequest(num_prompt_tokens=num_tokens, max_tokens=10_000, **values)


def judged(
    request: PlacementRequest,
    decode: list[Load],
    prefill: list[Load] | None = None,
    admission: AdmissionRules = STRICT,
    observed: Observed | None = None,
) -> Rejection | None:
    pool = snapshot(decode, prefill)
    decision, _ = place(request, pool, Policy().begin(1), Policy())
    assert decision is not None
    return rejection(request, decision, pool, admission, observed or Observed())


def queue(seconds: float) -> dict[str, Any]:
    """So much prompt work waits there, all of it due already."""
    return {"backlog": ((0.0, seconds),)}


# The first token


@pytest.mark.parametrize(
    ("wait_s", "slack", "is_rejected"),
    [(0.0, 1.0, False), (1.7, 1.0, False), (1.9, 1.0, True), (3.7, 2.0, False), (3.9, 2.0, True)],
)
def test_a_request_is_refused_when_its_first_token_would_be_late(
    wait_s: float, slack: float, is_rejected: bool
) -> None:
    """1,000 tokens take 0.202 s."""
    admission = AdmissionRules(rejects_early=True, slack=slack, quantile=Quantile.P50)
    found = judged(prompt(), [load("a", **queue(wait_s))], admission=admission)
    assert (found is not None) == is_rejected


def test_a_refusal_says_when_it_would_be_taken_on() -> None:
    found = judged(prompt(), [load("a", **queue(5.0))])
    assert found is not None
    assert found.retry_after_s == pytest.approx(5.0 + 0.202 - 2.0)
    assert found.reason == (
        "Class 'chat' promises a first token within 2 s, and 5.20 s are predicted"
    )


def test_those_who_are_refused_together_do_not_come_again_together() -> None:
    found = judged(prompt(), [load("a", **queue(5.0))])
    assert found is not None
    returns = EarlyRejection(Observed(), TenantUse())
    told_s = [returns.after_s(found, 10.0) for _ in range(3)]
    assert told_s == pytest.approx([3.202, 3.404, 3.606])
    assert returns.after_s(found, 12.0) == pytest.approx(3.202)  # 15.202 is after 13.808
    assert max(returns.after_s(found, 12.0) for _ in range(1000)) == MAX_RETRY_S
    assert returns.after_s(found, 100.0) == pytest.approx(3.202)


def test_time_already_spent_counts() -> None:
    assert judged(prompt(age_s=1.0), [load("a", **queue(0.9))]) is not None
    assert judged(prompt(age_s=0.5), [load("a", **queue(0.9))]) is None


def test_when_to_come_again_is_bounded_and_never_at_once() -> None:
    soon = judged(prompt(), [load("a", **queue(1.80))])
    late = judged(prompt(), [load("a", **queue(3600.0))])
    assert soon is not None
    assert late is not None
    assert soon.retry_after_s == MIN_RETRY_S
    assert late.retry_after_s == MAX_RETRY_S


def test_nobody_is_refused_where_nothing_else_runs() -> None:
    """Else a request that can be served, if late, could never be."""
    long = prompt(50_000)  # 10 s by itself
    slow = load("a", d0=0.5)
    hasty = AdmissionRules(rejects_early=True, slack=0.1, quantile=Quantile.P99)
    for request, decode in ((long, load("a")), (prompt(), slow), (long, slow)):
        assert judged(request, [decode], admission=hasty) is None
    assert judged(long, [load("a", **queue(9.0))]) is None  # late for its size
    assert judged(long, [load("a", **queue(11.0))]) is not None  # for the load


@settings(max_examples=40)
@given(
    num_tokens=st.integers(1, 100_000),
    c1=st.floats(1e-6, 1e-2),
    d0=st.floats(0.0, 2.0),
    prefill_error=st.floats(0.1, 50.0),
    age_s=st.floats(0.0, 10.0),
    excess=st.floats(1.0, 8.0),
    has_prefill=st.booleans(),
)
def test_nobody_is_ever_refused_where_nothing_else_runs(
    num_tokens: int,
    c1: float,
    d0: float,
    prefill_error: float,
    age_s: float,
    excess: float,
    has_prefill: bool,
) -> None:
    observed = Observed()
    for _ in range(20):  # it was busy, and predictions were wrong
        observed.accuracy.first_token(Compared(9.0, 1.0), Compared(0, 0), 0.0)
        observed.local_s.add(A, 3.0, 0.0)
    idle = {"c1": c1, "prefill_error": prefill_error, "num_total_tokens": 200_000}
    prefill = [load("p", **idle)] if has_prefill else []
    request = prompt(num_tokens, age_s=age_s, tenant_excess=excess)
    decode = load("a", d0=d0, decode_error=prefill_error, **idle)
    assert judged(request, [decode], prefill, observed=observed) is None


def test_off_nobody_is_refused_but_for_the_longest_queue() -> None:
    off = AdmissionRules(max_queued=10)
    assert judged(prompt(), [load("a", **queue(100.0))], admission=off) is None
    full = [load("a", num_prompts=6, **queue(8.0)), load("b", num_prompts=4, **queue(8.0))]
    found = judged(prompt(), full, admission=off)
    assert found is not None
    assert "10 prompts wait already" in found.reason
    assert found.retry_after_s == pytest.approx(0.8)
    prefill = [load("p", num_prompts=9)]  # who computes counts, not who waits for it
    assert judged(prompt(), full, prefill, admission=off) is None


def test_who_can_never_fit_is_not_told_to_come_again() -> None:
    """The worker refuses it for good, as an error of the caller's."""
    small = load("a", num_free_tokens=0, num_total_tokens=10_000, num_running=1, **queue(9.0))
    assert judged(prompt(10_001), [small]) is None
    assert judged(prompt(10_000), [small]) is not None


# Uncertainty


def test_what_the_router_measured_goes_before_what_workers_report() -> None:
    known = ErrorQuantiles(p50=1.2, p90=3.0, p99=9.0)
    assert error_factor(known, 1.5, Quantile.P50) == 1.2
    assert error_factor(known, 1.5, Quantile.P90) == 3.0
    assert error_factor(known, 1.5, Quantile.P99) == 9.0
    assert error_factor(None, 1.5, Quantile.P90) == 1.5
    assert error_factor(None, 1.5, Quantile.P50) == 1.0
    assert error_factor(ErrorQuantiles(p50=0.5, p90=0.7, p99=0.9), 1.5, Quantile.P90) == 1.0


def test_an_uncertain_prediction_refuses_earlier() -> None:
    cautious = AdmissionRules(rejects_early=True, slack=1.0, quantile=Quantile.P90)
    sure, unsure = load("a", **queue(1.0)), load("a", prefill_error=2.0, **queue(1.0))
    assert judged(prompt(), [sure], admission=cautious) is None
    assert judged(prompt(), [unsure], admission=cautious) is not None
    observed = Observed()
    for _ in range(20):
        observed.accuracy.first_token(Compared(3.0, 1.5), Compared(0, 0), 0.0)
    assert judged(prompt(), [sure], admission=cautious, observed=observed) is not None


# The time between tokens


def decision_on(decode: Load, *, ttft_s: float) -> Decision:
    return Decision(
        placement=Placement(decode=decode.worker, prefill=WorkerId("p")),
        price_s=0.0,
        num_cached_tokens=0,
        num_prefill_tokens=1000,
        wait_s=ttft_s - 0.2,
        prefill_s=0.2,
        itl_s=0.01,
        prefill_error=1.0,
        due_s=0.0,
    )


def test_answers_that_will_have_ended_do_not_count() -> None:
    """40 answers of 100 tokens at 20 ms a token: they turn over every two seconds."""
    busy = load("a", d0=0.01, d1=0.0, d2=2.5e-4, num_running=40, num_context_tokens=40_000)
    for after_s, num_left in ((0.0, 40.0), (2.0, 40 / math.e), (4.0, 40 / math.e**2)):
        then = decode_then(busy, after_s, 100, 1000)
        assert then.turnover_s == pytest.approx(2.0)
        assert then.num_sequences == pytest.approx(num_left)
        assert then.step_s == pytest.approx(0.01 + 2.5e-4 * num_left)


def test_while_others_wait_places_empty_one_after_another() -> None:
    """64 places, 64 running, 64 waiting: all 64 of a turnover's ends bring in another."""
    full = load("a", d1=0.0, d2=0.0, num_running=64, num_context_tokens=64_000, num_waiting=64)
    found = [
        decode_then(full, after_s, 100, 1000).num_sequences for after_s in (0.0, 0.5, 1.0, 2.0)
    ]
    assert found == pytest.approx([128, 96, 64, 64 / math.e])


def test_prompts_on_their_way_count_before_they_decode() -> None:
    """Judged by the load of now they would all be let in, and come at once."""
    quiet = load("a", d2=0.001, num_running=0)
    coming = quiet._replace(num_waiting=60)
    assert judged(prompt(), [quiet]) is None
    found = judged(prompt(), [coming])
    assert found is not None
    assert "50 ms between tokens" in found.reason
    assert found.retry_after_s > 0.1


def room_s(decode: Load, request: PlacementRequest | None = None, *, ttft_s: float = 0.2) -> float:
    found = forecast(request or prompt(), decision_on(decode, ttft_s=ttft_s), decode, EXACT, 100)
    return found.room_s


def test_a_first_token_does_not_come_in_time_if_the_second_waits_for_room() -> None:
    """64 answers of 100 tokens at 10 ms: 64 end in a second."""
    full = load("a", num_running=64, num_context_tokens=64_000, d1=0.0, d2=0.0)
    assert room_s(full, ttft_s=0.0) == pytest.approx(1 / 64)
    assert room_s(full, ttft_s=0.5) == 0.0  # some will have ended by then
    crowd = full._replace(num_waiting=192)
    assert room_s(crowd, ttft_s=0.0) == pytest.approx(193 / 64)
    assert room_s(crowd, ttft_s=1.5) == pytest.approx(97 / 64)
    coming = forecast(prompt(), decision_on(crowd, ttft_s=1.5), crowd, EXACT, 100)
    found = broken_promise(prompt(), coming, STRICT)
    assert found is not None
    assert "until there is room to decode" in found.reason
    assert found.retry_after_s == pytest.approx(1.5 + 97 / 64 - 2.0)


def test_waiting_for_room_is_spread_over_the_answer() -> None:
    full = load("a", num_running=64, num_context_tokens=64_000, d1=0.0, d2=0.0, num_waiting=64)
    for num_tokens in (5.0, 500.0):
        request = prompt(num_output_tokens=num_tokens)
        found = forecast(request, decision_on(full, ttft_s=0.2), full, EXACT, 100)
        assert found.itl_s == pytest.approx(0.01 + found.room_s / num_tokens)
        assert (broken_promise(request, found, STRICT) is None) == (num_tokens > 100)


def test_memory_has_places_for_so_many() -> None:
    """Of 100,000 tokens; each of ten has 1,950, and 50 more to write on average."""
    some = load("a", num_running=10, num_context_tokens=19_500, num_free_tokens=80_500)
    assert decode_then(some, 0.0, 100, 1950).num_places == pytest.approx(50)
    promised = some._replace(num_waiting=90, num_free_tokens=100_000 - 195_000)
    assert decode_then(promised, 0.0, 100, 1950).num_places == pytest.approx(50)
    turnover_s = decode_then(promised, 0.0, 100, 1950).turnover_s
    assert room_s(promised, prompt(1950), ttft_s=0.0) == pytest.approx(turnover_s * 51 / 50)
    unknown = promised._replace(num_total_tokens=math.inf)
    assert decode_then(unknown, 0.0, 100, 1950).num_places == 64


def test_who_decodes_where_its_prompt_is_computed_waits_for_room_before() -> None:
    full = load("a", num_running=64, num_context_tokens=64_000)
    local = replace(decision_on(full, ttft_s=0.2), placement=Placement(decode=A, prefill=None))
    assert forecast(prompt(), local, full, EXACT, 100).room_s == 0.0


def test_prompts_that_a_decode_worker_computes_slow_its_answers_down() -> None:
    """Half of its time leaves half of its speed."""
    alone, observed = load("a", d1=0.0, d2=0.0), Observed()
    decision = replace(decision_on(alone, ttft_s=0.2), placement=Placement(decode=A, prefill=None))
    half = forecast(prompt(), decision, alone, EXACT, 100, 0.5)
    assert (half.itl_s, half.alone_itl_s) == pytest.approx((0.02, 0.01))
    few = alone._replace(num_running=1)
    assert judged(prompt(), [few], observed=observed) is None
    for tenth in range(1, 200):  # twenty seconds in which it computed prompts nine tenths of them
        observed.placed(DEFAULT_CLASS, replace(decision, prefill_s=0.09), 0.1 * tenth - 20.0)
    found = judged(prompt(), [few], observed=observed)
    assert found is not None
    assert "between tokens" in found.reason
    assert judged(prompt()._replace(max_tokens=1), [few], observed=observed) is None


def test_who_used_more_than_its_share_is_refused_first() -> None:
    busy = [load("a", **queue(1.0))]
    assert judged(prompt(), busy) is None
    found = judged(prompt(tenant_excess=2.0), busy)
    assert found is not None
    assert "whose tenant uses 2.0 times its share" in found.reason
    assert judged(prompt(tenant_excess=8.0), [load("a")]) is None  # nothing else runs


@pytest.mark.parametrize(
    ("target", "alone", "slack", "expected"),
    [(2.0, 0.1, 1.0, 2.0), (2.0, 1.5, 1.0, 3.0), (2.0, 0.1, 2.0, 4.0), (2.0, 3.0, 0.1, 3.0)],
)
def test_limits(target: float, alone: float, slack: float, expected: float) -> None:
    assert limit_s(target, alone, slack) == pytest.approx(expected)
