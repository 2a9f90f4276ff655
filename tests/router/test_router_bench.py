"""The benchmark of the router runs what it says it measures."""

import time

import pytest

from bench.decision_setting import DecisionSetting, Deployment
from bench.router import decision_times

TINY = DecisionSetting(num_tokens=512, grain=16, num_prefill=2, num_decode=2)


def test_the_deployment_it_places_in_is_sound() -> None:
    deployment = Deployment(TINY)
    for _ in range(20):
        deployment.step()
        decision = deployment.placer.place(deployment.ask(), deployment.now)
        assert decision is not None
    deployment.placer.check()
    assert deployment.placer.books.counters.num_placed > 20


@pytest.mark.slow
def test_a_decision_is_told_by_its_parts() -> None:
    times = decision_times(TINY, 20, time.perf_counter)
    assert times.match.p50 > 0
    assert times.decision.p99 >= times.decision.p50 >= times.match.p50
    assert times.price.p50 > 0
