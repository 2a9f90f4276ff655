"""Differences of what was told: never over two lives, never of nothing."""

import pytest

from penstock.cli.top.track import Buckets, buckets, increase, rate
from tests.penstock.top.told import histogram, page, series, track

TOKENS = "penstock_generated_tokens"
TTFT = "penstock_time_to_first_token_seconds"
BOUNDS = (0.1, 0.2, 0.4)


def tokens(number: float, uptime_s: float = 100.0) -> str:
    return page("router", {series(TOKENS): number}, uptime_s=uptime_s)


def test_a_rate_is_what_a_counter_rose_by_within_the_window() -> None:
    kept = track((0, tokens(0)), (10, tokens(1000)), (20, tokens(1500)), (22, tokens(1520)))
    found = kept.over(10)
    assert found is not None
    assert found.seconds == 12  # the last look that is at least so long ago
    assert rate([found], f"{TOKENS}_total") == pytest.approx(520 / 12)
    everything = kept.over(1e6)
    assert everything is not None
    assert everything.seconds == 22


def test_there_is_no_rate_of_one_look() -> None:
    assert track((0, tokens(5))).over(10) is None
    assert rate([], f"{TOKENS}_total") is None


def test_what_is_told_for_the_first_time_began_at_nothing() -> None:
    kept = track((0, page("router", {})), (10, tokens(50)))
    assert rate([kept.over(10)], f"{TOKENS}_total") == 5  # type: ignore[list-item]


def test_a_restart_gives_no_rate_until_the_new_life_was_seen_twice() -> None:
    before = [(0, tokens(10_000)), (2, tokens(10_100, uptime_s=102))]
    kept = track(*before, (4, tokens(3, uptime_s=1)))
    assert kept.over(10) is None
    kept = track(*before, (4, tokens(3, uptime_s=1)), (6, tokens(23, uptime_s=3)))
    assert rate([kept.over(10)], f"{TOKENS}_total") == 10  # type: ignore[list-item]
    # More than before, and yet another life: its uptime tells.
    kept = track(*before, (4, tokens(99_000, uptime_s=1)))
    assert kept.over(10) is None


def test_a_counter_that_falls_alone_has_not_risen() -> None:
    """A router begins anew to count of a worker that was started again."""
    key = series("penstock_worker_cached_tokens", worker="d", role="decode")
    kept = track((0, page("router", {key: 900.0})), (10, page("router", {key: 5.0}, uptime_s=110)))
    found = kept.over(10)
    assert found is not None
    assert increase([found], "penstock_worker_cached_tokens_total") == 0


def test_quantiles_are_of_what_came_within_the_window() -> None:
    slow = [0.35] * 90
    kept = track(
        (0, page("router", {**histogram(TTFT, slow, BOUNDS)})),
        (10, page("router", {**histogram(TTFT, [*slow, *[0.15] * 10], BOUNDS)})),
    )
    found = buckets([kept.over(10)], TTFT)  # type: ignore[list-item]
    assert found.num == 10
    assert found.mean == pytest.approx(0.15)
    assert found.quantile(0.5) == pytest.approx(0.15)
    assert found.quantile(1.0) == pytest.approx(0.2)


def test_where_nothing_came_there_is_no_quantile() -> None:
    told = page("router", {**histogram(TTFT, [0.3] * 9, BOUNDS)})
    found = buckets([track((0, told), (9, told)).over(9)], TTFT)  # type: ignore[list-item]
    assert (found.num, found.mean, found.quantile(0.5)) == (0, None, None)
    assert Buckets([], [], 0.0).quantile(0.5) is None


def test_what_is_above_all_bounds_counts_as_the_last() -> None:
    empty, full = histogram(TTFT, [], BOUNDS), histogram(TTFT, [9.0] * 4, BOUNDS)
    kept = track((0, page("router", {**empty})), (9, page("router", {**full})))
    assert buckets([kept.over(9)], TTFT).quantile(0.99) == 0.4  # type: ignore[list-item]


def test_several_processes_add_up() -> None:
    one = track((0, tokens(0)), (10, tokens(100))).over(10)
    other = track((5, tokens(7)), (15, tokens(57))).over(10)
    assert one is not None
    assert other is not None
    assert rate([one, other], f"{TOKENS}_total") == 15


def test_what_is_too_old_is_forgotten() -> None:
    kept = track(*((at, tokens(at)) for at in range(100)), keep_s=10)
    found = kept.over(1e6)
    assert found is not None
    assert found.seconds <= 11
