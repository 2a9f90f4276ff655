"""The cost models learn what steps cost, forget what no longer holds, and never go wild."""

import random

import pytest

from cluster.residuals import Residuals
from cluster.types import DecodeCost, ErrorQuantiles, PrefillCost
from worker.cost import DecodeCostModel, PrefillCostModel, StepCost

TRUE_PREFILL = PrefillCost(c0=4e-3, c1=8e-5, c2=3e-7, c3=2e-8)
TRUE_DECODE = DecodeCost(d0=6e-3, d1=2e-7, d2=9e-4)


def prefill_steps(seed: int, count: int) -> list[tuple[int, int]]:
    draw = random.Random(seed)
    return [(draw.randint(1, 512), draw.randint(0, 4096)) for _ in range(count)]


def trained(cost: PrefillCost, *, noise: float = 0.0, count: int = 300) -> PrefillCostModel:
    model, draw = PrefillCostModel(), random.Random(1)
    for new, context in prefill_steps(7, count):
        seconds = cost.seconds(new, context) * draw.lognormvariate(0.0, noise)
        model.observe(new, context, seconds)
    return model


@pytest.mark.parametrize(("noise", "tolerance"), [(0.0, 0.02), (0.2, 0.2)])
def test_prefill_steps_are_predicted_after_a_few_hundred(noise: float, tolerance: float):
    learned = trained(TRUE_PREFILL, noise=noise).cost()
    for new, context in prefill_steps(8, 50):
        expected = TRUE_PREFILL.seconds(new, context)
        assert learned.seconds(new, context) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("factor", [1e-3, 1e-2, 30, 1000])
def test_a_machine_a_thousand_times_faster_or_slower_than_the_first_guess_is_learned(
    factor: float,
):
    true = PrefillCost(
        **{name: factor * getattr(TRUE_PREFILL, name) for name in ("c0", "c1", "c2", "c3")}
    )
    learned = trained(true).cost()
    for new, context in prefill_steps(8, 50):
        assert learned.seconds(new, context) == pytest.approx(true.seconds(new, context), rel=0.1)


def test_decode_steps_are_predicted():
    model, draw = DecodeCostModel(), random.Random(3)
    for _ in range(300):
        batch = draw.randint(1, 32)
        context = sum(draw.randint(1, 2000) for _ in range(batch))
        model.observe(context, batch, TRUE_DECODE.seconds(context, batch))
    for context, batch in ((100, 1), (8000, 16), (30_000, 32)):
        expected = TRUE_DECODE.seconds(context, batch)
        assert model.cost().seconds(context, batch) == pytest.approx(expected, rel=0.02)


def test_steps_that_are_all_alike_are_learned_and_the_rest_is_not_forgotten():
    model = trained(TRUE_PREFILL)
    for _ in range(3_000):
        model.observe(64, 0, 2 * TRUE_PREFILL.seconds(64, 0))
    learned = model.cost()
    assert learned.seconds(64, 0) == pytest.approx(2 * TRUE_PREFILL.seconds(64, 0), rel=0.01)
    known = TRUE_PREFILL.seconds(512, 4096)
    assert 0.5 * known < learned.seconds(512, 4096) < 4 * known


def test_a_change_of_the_machine_is_followed_within_some_hundred_steps():
    model = trained(TRUE_PREFILL)
    for new, context in prefill_steps(9, 300):
        model.observe(new, context, 3 * TRUE_PREFILL.seconds(new, context))
    for new, context in prefill_steps(10, 20):
        expected = 3 * TRUE_PREFILL.seconds(new, context)
        assert model.cost().seconds(new, context) == pytest.approx(expected, rel=0.15)


def test_one_step_during_which_the_process_stood_still_changes_little():
    model = trained(TRUE_PREFILL, noise=0.05)
    before = model.cost().seconds(256, 1024)
    model.observe(256, 1024, 30.0)
    assert model.cost().seconds(256, 1024) == pytest.approx(before, rel=0.2)


def test_a_machine_that_is_another_again_and_again_is_followed_for_ever():
    """A lone caller's steps are all alike: of what they never speak something stays known."""
    draw, model = random.Random(1), DecodeCostModel()
    for number in range(2_450):
        usual = 0.004 if number // 50 % 2 else 0.4
        model.observe(66 + number % 15, 1, usual * draw.lognormvariate(0.0, 0.1))
    for number in range(300):
        model.observe(66 + number % 15, 1, 0.004 * draw.lognormvariate(0.0, 0.1))
    assert model.cost().seconds(70, 1) == pytest.approx(0.004, rel=0.2)


def test_no_coefficient_is_ever_negative_whatever_was_observed():
    draw = random.Random(5)
    prefill, decode = PrefillCostModel(), DecodeCostModel()
    for _ in range(500):
        new, context = draw.choice([(1, 0), (512, 0), (16, 4000), (500, 4000)])
        prefill.observe(new, context, draw.expovariate(100))
        decode.observe(context, new, draw.expovariate(100) if context else 0.0)
        p, d = prefill.cost(), decode.cost()
        assert min(p.c0, p.c1, p.c2, p.c3, d.d0, d.d1, d.d2) >= 0.0


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_duration_teaches_nothing(seconds: float):
    model = PrefillCostModel()
    before = model.cost()
    model.observe(10, 10, seconds)
    assert model.cost() == before


def test_a_step_of_several_prompts_counts_the_start_up_once():
    model = PrefillCostModel()
    draw = random.Random(2)
    for _ in range(400):
        rows = [(draw.randint(1, 200), draw.randint(0, 2000)) for _ in range(draw.randint(1, 4))]
        seconds = TRUE_PREFILL.c0 + sum(
            TRUE_PREFILL.seconds(*row) - TRUE_PREFILL.c0 for row in rows
        )
        model.observe_rows(rows, seconds)
    assert model.cost().seconds(128, 512) == pytest.approx(TRUE_PREFILL.seconds(128, 512), rel=0.03)


def test_before_any_step_the_given_guess_is_used():
    guess = PrefillCost(c0=1.0, c1=2.0, c2=3.0, c3=4.0)
    learned = PrefillCostModel(guess).cost()
    assert learned.seconds(3, 5) == pytest.approx(guess.seconds(3, 5))


def test_the_errors_of_the_last_predictions_are_told_by_quantiles():
    residuals = Residuals(num_kept=100)
    assert residuals.quantiles() == ErrorQuantiles(p50=1.0, p90=1.0, p99=1.0)
    for ratio in range(1, 301):  # the last hundred are 201 to 300
        residuals.add(float(ratio), 1.0)
    assert residuals.quantiles() == ErrorQuantiles(p50=250.0, p90=290.0, p99=299.0)


@pytest.mark.parametrize(
    ("actual_s", "predicted_s"),
    [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0), (float("nan"), 1.0), (float("inf"), 1.0), (1.0, -1.0)],
)
def test_what_is_no_duration_is_no_error(actual_s: float, predicted_s: float):
    residuals = Residuals()
    residuals.add(actual_s, predicted_s)
    assert residuals.quantiles() == ErrorQuantiles()


def test_the_errors_of_steps_are_as_spread_as_the_steps_are():
    cost, draw = StepCost(), random.Random(4)
    for new, context in prefill_steps(3, 600):
        seconds = TRUE_PREFILL.seconds(new, context) * draw.lognormvariate(0.0, 0.2)
        cost.observe([(new, context)], [], seconds)
        cost.observe([], [context], TRUE_DECODE.seconds(context, 1))
    assert cost.prefill_error.p50 == pytest.approx(1.0, abs=0.1)
    assert cost.prefill_error.p90 == pytest.approx(1.29, abs=0.12)  # of the lognormal: 1.29
    assert cost.prefill_error.p99 == pytest.approx(1.59, abs=0.25)
    assert cost.decode_error.p99 == pytest.approx(1.0, abs=0.01)


def test_the_error_of_the_first_guess_is_forgotten_at_once():
    cost = StepCost()
    for new, context in prefill_steps(3, 60):
        cost.observe([(new, context)], [], 100 * TRUE_PREFILL.seconds(new, context))
    assert 0.5 < cost.prefill_error.p50 <= cost.prefill_error.p99 < 2.0
