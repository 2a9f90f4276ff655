"""Sums whose past counts less and less."""

import pytest

from router.decaying import DecayingSums


def test_half_is_left_after_a_half_life() -> None:
    sums = DecayingSums[str](10.0, 8)
    sums.add("a", 8.0, 0.0)
    sums.add("a", 1.0, 10.0)
    assert sums.of("a", 10.0) == pytest.approx(5.0)
    assert sums.of("a", 30.0) == pytest.approx(1.25)
    assert sums.of("b", 30.0) == 0.0


def test_a_steady_stream_has_its_rate() -> None:
    sums = DecayingSums[str](5.0, 8)
    for tenth in range(1000):
        sums.add("a", 0.03, 0.1 * tenth)
    assert sums.rate("a", 100.0) == pytest.approx(0.3, rel=0.02)


def test_the_least_goes_where_there_are_too_many_and_what_is_nothing_goes_by_itself() -> None:
    sums = DecayingSums[int](10.0, 3)
    for key in range(5):
        sums.add(key, 10.0 - key, 0.0)
    assert sums.all(0.0) == {0: 10.0, 1: 9.0, 4: 6.0}
    assert sums.all(1000.0) == {}
    assert len(sums) == 0
    sums.add(7, 1.0, 1000.0)
    sums.forget(7)
    assert sums.of(7, 1000.0) == 0.0
