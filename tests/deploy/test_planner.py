"""The planner's decisions: enough, no more, never to and fro, and why."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.planner.direction import NO_DIRECTIONS, Counts, Directions
from deploy.planner.observation import Observation
from deploy.planner.planner import PlannerState, SizingDecision, decide
from deploy.planner.settings import Bounds, PlannerSettings
from simulator.elastic import Staff
from simulator.rehearsal import Come
from simulator.setting import Setting

HOLD_S = 600.0
SETTINGS = PlannerSettings()
BOUNDS = Bounds(most_prefill=8, most_decode=8)
SETTING = Setting(num_prefill=1, num_decode=1)


def traffic(rate: float, *, begin_s: float, end_s: float) -> tuple[Come, ...]:
    """Evenly spaced, all alike: 2.4 s to compute, within 8 s, and 100 ms a token."""
    num = int(rate * (end_s - begin_s))
    return tuple(Come(begin_s + at / rate, 24_000, 24_000, 200, 8.0, 0.1) for at in range(num))


def arrived_at(come: Come) -> float:
    return come.arrived_at


def observation(now_s: float, rate: float, counts: Counts, **changes: object) -> Observation:
    begin_s = now_s - min(600.0, 200.0 / max(rate, 1e-9))  # few: rehearsed sooner
    requests = traffic(rate, begin_s=begin_s, end_s=now_s) if rate else ()
    seen = Observation(
        now_s=now_s,
        begin_s=begin_s,
        requests=requests,
        is_full=True,
        num_judged=len(requests),
        num_good=len(requests),
        queue_s=0.0,
        num_waiting=0,
        kv_share=0.1,
        prefill=Staff(num_serving=counts.prefill),
        decode=Staff(num_serving=counts.decode),
        setting=SETTING,
    )
    return replace(seen, **changes)  # type: ignore[arg-type]


def steady(
    rate: float, counts: Counts, *, bounds: Bounds = BOUNDS, num_looks: int = 32
) -> list[SizingDecision]:
    """The same traffic for twenty minutes; what is wanted is there at once."""
    state, decisions = PlannerState(), []
    for look in range(num_looks):
        seen = observation(1000.0 + 40.0 * look, rate, counts)
        decision, state = decide(seen, state, SETTINGS, bounds)
        counts = decision.counts
        decisions.append(decision)
    return decisions


def test_too_little_is_more_at_once_and_says_why() -> None:
    decision, _ = decide(observation(1000.0, 1.2, Counts(1, 1)), PlannerState(), SETTINGS, BOUNDS)
    assert decision.counts.num >= 4
    assert "1+1 would not have been enough" in decision.explain()
    assert decision.terms["requests_s"] == pytest.approx(1.2, rel=0.01)


def test_fewer_only_after_a_while() -> None:
    decisions = steady(0.3, Counts(6, 4))
    assert decisions[0].counts == Counts(6, 4)
    assert "not known for how long" in decisions[0].explain()
    calm = [each.counts for each in decisions[: int(SETTINGS.calm_s / 40.0) - 2]]
    assert set(calm) == {Counts(6, 4)}
    assert decisions[-1].counts.num <= 4


def test_steady_traffic_comes_to_rest() -> None:
    counts = [each.counts for each in steady(0.9, Counts(1, 1))]
    assert len(set(counts[-12:])) == 1


def test_an_idle_pool_that_may_be_cold_goes_to_nothing_and_comes_back() -> None:
    bounds = Bounds(least_decode=0)
    decisions = steady(0.0, Counts(1, 1), bounds=bounds)
    assert decisions[-1].counts == Counts(0, 0)
    waiting = observation(9000.0, 0.0, Counts(0, 0), num_waiting=1, setting=None)
    decision, _ = decide(waiting, PlannerState(), SETTINGS, bounds)
    assert decision.counts == Counts(0, 1)


def test_a_request_that_waits_is_not_held_up_by_a_reversal() -> None:
    """It has just gone to nothing: the first who comes after it is still served."""
    bounds = Bounds(least_decode=0)
    state, counts = PlannerState(), Counts(0, 1)
    while counts.decode:
        now_s = 1000.0 if state.looked_s < 0 else state.looked_s + 20.0
        decision, state = decide(observation(now_s, 0.0, counts), state, SETTINGS, bounds)
        counts = decision.counts
    seen = observation(state.looked_s + 20.0, 0.0, counts, num_waiting=1)
    decision, _ = decide(seen, state, SETTINGS, bounds)
    assert decision.counts == Counts(0, 1)


def test_nobody_goes_while_prompts_pile_up() -> None:
    state = PlannerState()
    for look in range(30):
        seen = observation(1000.0 + 40.0 * look, 0.3, Counts(6, 4), queue_s=500.0)
        decision, state = decide(seen, state, SETTINGS, BOUNDS)
        assert decision.counts.num >= 10


def test_bounds_hold() -> None:
    narrow = Bounds(least_prefill=1, most_prefill=2, least_decode=1, most_decode=2)
    assert steady(10.0, Counts(1, 1), bounds=narrow, num_looks=2)[-1].counts == Counts(2, 2)
    assert steady(0.06, Counts(2, 2), bounds=narrow)[-1].counts.num == 2


def test_missed_targets_weigh_more_than_what_is_rehearsed() -> None:
    """A size that should do and does not is not believed for ever."""
    state, counts = PlannerState(), Counts(3, 2)
    for look in range(30):
        seen = observation(1000.0 + 40.0 * look, 0.5, counts)
        seen = replace(seen, num_good=seen.num_judged // 2)
        _, state = decide(seen, state, SETTINGS, BOUNDS)
    assert state.strain > 1.2


def test_a_burst_that_is_over_before_a_worker_has_started_counts_in_part() -> None:
    enough = steady(0.6, Counts(4, 2))[-1].counts
    seen = observation(2000.0, 0.6, enough)
    burst = traffic(1.8, begin_s=1850.0, end_s=1940.0)
    together = sorted((*traffic(0.6, begin_s=1000.0, end_s=2000.0), *burst), key=arrived_at)
    seen = replace(seen, begin_s=1000.0, requests=together)
    decision, state = decide(seen, PlannerState(), SETTINGS, BOUNDS)
    assert decision.counts.num <= enough.num + 1
    assert "Bursts are left out" in decision.explain()
    assert state.strain == 1.0


def test_a_role_is_changed_where_that_is_enough() -> None:
    """As many workers as before, the other way round: no start, and no drain beside one."""
    seen = observation(1000.0, 0.9, Counts(0, 5))
    seen = replace(seen, requests=[replace(each, itl_s=0.03) for each in seen.requests])
    decision, _ = decide(seen, PlannerState(), SETTINGS, Bounds(most_prefill=8, most_decode=5))
    assert decision.counts.num <= 5
    assert decision.num_flips == decision.counts.prefill > 0
    assert "changing a role" in decision.explain()


COUNTS = st.builds(Counts, st.integers(0, 6), st.integers(1, 6))


@given(st.lists(st.tuples(st.floats(1.0, 400.0), COUNTS), max_size=40))
def test_whatever_is_wanted_nothing_turns_twice_within_the_hold(
    wishes: list[tuple[float, Counts]],
) -> None:
    directions: Directions = NO_DIRECTIONS
    now, now_s = Counts(1, 1), 0.0
    series = [(now_s, now)]
    for after_s, wanted in wishes:
        now_s += after_s
        then = directions.clip(now, wanted, now_s, HOLD_S)
        directions = directions.after(now, then, now_s)
        now = then
        series.append((now_s, now))
    assert_never_twice(series)


@settings(max_examples=6, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(5.0, 300.0),
            st.sampled_from((0.0, 0.1, 0.3, 0.8, 2.0)),
            st.floats(0.0, 900.0),
            st.booleans(),
        ),
        min_size=5,
        max_size=20,
    )
)
def test_whatever_is_observed_nothing_turns_twice_within_the_hold(
    looks: list[tuple[float, float, float, bool]],
) -> None:
    state, counts, now_s = PlannerState(), Counts(1, 1), 1000.0
    series = [(now_s, counts)]
    for after_s, rate, queue_s, is_good in looks:
        now_s += after_s
        seen = observation(now_s, rate, counts, queue_s=queue_s)
        seen = replace(seen, num_good=seen.num_good if is_good else 0)
        decision, state = decide(seen, state, SETTINGS, BOUNDS)
        counts = decision.counts
        for number, role in zip(counts, ("prefill", "decode"), strict=True):
            assert getattr(BOUNDS, f"least_{role}") <= number <= getattr(BOUNDS, f"most_{role}")
        series.append((now_s, counts))
    assert_never_twice(series)


def assert_never_twice(series: list[tuple[float, Counts]]) -> None:
    numbers = (lambda each: each.prefill, lambda each: each.decode, lambda each: each.num)
    for number in numbers:
        sign, turned_at = 0, -math.inf
        for (_, before), (at_s, after) in pairwise(series):
            change = number(after) - number(before)
            if not change:
                continue
            if change * sign < 0:
                assert at_s >= turned_at + HOLD_S
                turned_at = at_s
            sign = 1 if change > 0 else -1
