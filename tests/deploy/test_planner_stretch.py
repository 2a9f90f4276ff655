"""The stretch of traffic that is sized for: as long as it stays as fast, without a lone burst."""

import random
from collections.abc import Sequence

import pytest

from deploy.planner.stretch import alike_since, pace, without_bursts
from simulator.rehearsal import Come


def poisson(*spans: tuple[float, float], seed: int = 0) -> list[Come]:
    """Spans of (seconds, requests a second), one after another from 0 on."""
    chances, found, begin_s = random.Random(seed), [], 0.0
    for span_s, rate in spans:
        at_s = begin_s + chances.expovariate(rate)
        while at_s < begin_s + span_s:
            found.append(Come(at_s, 1000, 1000, 100, 2.0, 0.1))
            at_s += chances.expovariate(rate)
        begin_s += span_s
    return found


def rate(requests: Sequence[Come], begin_s: float, end_s: float) -> float:
    return sum(begin_s <= each.arrived_at < end_s for each in requests) / (end_s - begin_s)


def test_steady_traffic_is_mostly_looked_at_as_far_back_as_can_be() -> None:
    since = [
        alike_since(poisson((1800.0, 1.0), seed=seed), 0.0, 1800.0, 600.0) for seed in range(9)
    ]
    assert sorted(since)[4] == 0.0


@pytest.mark.parametrize("then", [0.4, 2.5])
def test_what_came_faster_or_slower_before_is_not_looked_at(then: float) -> None:
    requests = poisson((900.0, 1.0), (900.0, then))
    assert alike_since(requests, 0.0, 1800.0, 600.0) == 900.0


def test_the_latest_window_is_looked_at_whatever_it_holds() -> None:
    requests = poisson((300.0, 0.5), (300.0, 3.0))
    assert alike_since(requests, 0.0, 600.0, 600.0) == 0.0
    assert alike_since((), 0.0, 1800.0, 600.0) <= 1200.0


def test_the_latest_window_says_how_fast_they_come() -> None:
    requests = poisson((1200.0, 1.0), (600.0, 1.2))
    expected = rate(requests, 1200.0, 1800.0) / rate(requests, 0.0, 1800.0)
    assert pace(requests, 0.0, 1800.0, 600.0) == pytest.approx(expected)


def test_a_lone_burst_is_cut_down_to_twice_what_is_usual() -> None:
    requests = poisson((700.0, 1.0), (90.0, 3.0), (410.0, 1.0))
    calm = without_bursts(requests, 0.0, 1200.0, 600.0)
    assert calm.num_left_out == len(requests) - len(calm.requests) > 50
    assert rate(calm.requests, 700.0, 790.0) == pytest.approx(2.0, abs=0.25)
    assert calm.requests == sorted(calm.requests, key=lambda each: each.arrived_at)


def test_a_burst_that_goes_on_for_longer_than_a_start_is_left_in() -> None:
    requests = poisson((700.0, 1.0), (200.0, 3.0))
    assert without_bursts(requests, 0.0, 900.0, 600.0).num_left_out == 0


def test_bursts_that_come_again_are_left_in() -> None:
    requests = poisson((300.0, 1.0), (60.0, 4.0), (300.0, 1.0), (60.0, 4.0), (300.0, 1.0))
    assert without_bursts(requests, 0.0, 1020.0, 600.0).num_left_out == 0


def test_bursts_that_are_rare_are_all_cut_down() -> None:
    requests = poisson((400.0, 1.0), (60.0, 4.0), (800.0, 1.0), (60.0, 4.0), (480.0, 1.0))
    calm = without_bursts(requests, 0.0, 1800.0, 600.0)
    assert rate(calm.requests, 400.0, 460.0) < 2.5
    assert rate(calm.requests, 1260.0, 1320.0) < 2.5


def test_steady_traffic_has_no_burst() -> None:
    for seed in range(20):
        for each in (0.1, 1.0, 5.0):
            requests = poisson((1200.0, each), seed=seed)
            assert without_bursts(requests, 0.0, 1200.0, 600.0).num_left_out == 0
