"""When a policy on trial ends, goes on, or takes over."""

import math
import random

import pytest

from router.histogram import DurationHistogram
from router.policy_settings import CanarySettings, Guards
from router.rollout.canary import Figures, Trial, Verdict, judge

SETTINGS = CanarySettings(duration_s=60.0, min_requests=100)


def figures(num: int, *, ttft_s: float = 0.5, num_errors: int = 0, num_slow: int = 0) -> Figures:
    """TTFTs spread by 10 % around `ttft_s`; the slow ones take ten times as long."""
    histogram, draw = DurationHistogram(), random.Random(num)
    for number in range(num):
        factor = 10.0 if number < num_slow else 1.0
        histogram.add(factor * ttft_s * draw.uniform(0.9, 1.1))
    return Figures(ttft=histogram, num_placed=num, num_ended=num, num_errors=num_errors)


GOOD = figures(2000)
TABLE = [
    ("alike, early", figures(400), 30.0, Verdict.WAIT, "30 s to go"),
    ("alike, at the end", figures(400), 60.0, Verdict.PROMOTE, "kept within its guards"),
    ("too few to tell", figures(20, ttft_s=5.0), 30.0, Verdict.WAIT, "30 s to go"),
    (
        "too few at the end",
        figures(20),
        90.0,
        Verdict.WAIT,
        "waits for requests: 20 of the 100 that",
    ),
    ("slow", figures(400, ttft_s=1.0), 1.0, Verdict.ROLL_BACK, "p95 of TTFT"),
    ("a tenth is slow", figures(400, num_slow=40), 1.0, Verdict.ROLL_BACK, "p95 of TTFT"),
    ("chance", figures(100, num_slow=6), 30.0, Verdict.WAIT, "to go"),
    ("a little slower", figures(400, ttft_s=0.55), 60.0, Verdict.PROMOTE, "kept"),
    ("errors", figures(200, num_errors=20), 1.0, Verdict.ROLL_BACK, "10 % of its requests failed"),
    ("one error is chance", figures(200, num_errors=1), 30.0, Verdict.WAIT, "to go"),
]


@pytest.mark.parametrize(
    ("canary", "age_s", "verdict", "why"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_a_trial_is_judged(canary: Figures, age_s: float, verdict: Verdict, why: str) -> None:
    found = judge(Trial(settings=SETTINGS, canary=canary, baseline=GOOD, age_s=age_s))
    assert found.verdict is verdict
    assert why in found.why


def test_a_baseline_that_is_as_bad_is_no_breach() -> None:
    bad = figures(2000, ttft_s=9.0, num_errors=300)
    canary = figures(200, ttft_s=9.0, num_errors=35)
    trial = Trial(settings=SETTINGS, canary=canary, baseline=bad, age_s=60.0)
    assert judge(trial).verdict is Verdict.PROMOTE


def test_without_guards_it_takes_over_when_its_time_has_come() -> None:
    settings = CanarySettings(duration_s=10.0, guards=Guards())
    awful = figures(900, ttft_s=90.0, num_errors=900)
    for age_s, verdict in ((9.0, Verdict.WAIT), (10.0, Verdict.PROMOTE)):
        trial = Trial(settings=settings, canary=awful, baseline=GOOD, age_s=age_s)
        assert judge(trial).verdict is verdict


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95, 0.99, 1.0])
def test_quantiles_are_a_fiftieth_too_high_at_most(share: float) -> None:
    draw, histogram = random.Random(3), DurationHistogram()
    values = sorted(math.exp(draw.gauss(-1.0, 2.0)) for _ in range(5000))
    for value in values:
        histogram.add(value)
    exact = values[max(0, math.ceil(share * len(values)) - 1)]
    assert exact <= histogram.quantile(share) <= 1.02 * exact + 1e-4


def test_extremes_have_a_bucket() -> None:
    histogram = DurationHistogram()
    assert histogram.quantile(0.5) == 0.0
    for value in (-1.0, 0.0, 1e-9, 1e12):
        histogram.add(value)
    assert histogram.quantile(0.5) <= 1e-4
    assert 1e4 < histogram.quantile(1.0) < 1.1e4
    assert histogram.with_more([1.0]).count == 5
    assert histogram.count == 4


def _ends_at(seed: int, slower: float, error_share: float) -> int | None:
    """After how many of its requests a canary is rolled back; None: it is not. It gets 5 %."""
    draw, canary, baseline = random.Random(seed), Figures(), Figures()

    def happen(to: Figures, factor: float, share: float) -> None:
        to.num_placed += 1
        to.num_ended += 1
        to.num_errors += draw.random() < share
        to.ttft.add(factor * draw.lognormvariate(-1.0, 1.0))

    settings = CanarySettings(duration_s=1e4, min_requests=200)
    for number in range(1200):
        happen(canary, slower, error_share)
        for _ in range(19):
            happen(baseline, 1.0, 0.01)
        if number >= 200 and number % 20 == 0:
            trial = Trial(settings=settings, canary=canary, baseline=baseline, age_s=number)
            if judge(trial).verdict is Verdict.ROLL_BACK:
                return number
    return None


@pytest.mark.prove
def test_chance_ends_no_canary_and_a_real_breach_does() -> None:
    """Judged again and again, with TTFTs that spread by a factor of five."""
    assert sum(_ends_at(seed, 1.0, 0.01) is not None for seed in range(40)) <= 2
    assert all(_ends_at(seed, 1.5, 0.01) is not None for seed in range(20))
    assert all(_ends_at(seed, 1.0, 0.06) is not None for seed in range(20))
