"""What was decided is remembered, in bounded memory."""

import random

import pytest

from cluster.types import WorkerId
from router.decision import Attempt, PlacementRequest, place
from router.pair_costs import PairCosts
from router.policy import Policy
from router.records import Fate, Records, seen
from router.rollout.canary import Figures
from router.rollout.generations import Generations, LivePolicy, share_of
from router.rollout.shadow import Shadow
from tests.router.attempt_samples import draw_attempt
from tests.router.pool_samples import load, snapshot

BUDGET = 1 << 20


def live(policy: Policy | None = None) -> LivePolicy:
    return Generations(policy or Policy()).active


def attempt(**changes: object) -> Attempt:
    pool = snapshot([load("a"), load("b")])._replace(**changes)  # type: ignore[arg-type]
    policy = Policy()
    request = PlacementRequest(num_prompt_tokens=100, max_tokens=10)
    state = policy.begin(0)
    return Attempt(request, pool, state, policy, place(request, pool, state, policy)[0])


def answer(records: Records, request_id: str, of: LivePolicy, what: Attempt | None = None) -> None:
    """From its placement to its end."""
    record = records.begin(request_id, of, 0.0)
    records.attempted(record, what or attempt())
    records.first_token(record, 32, 0.5)
    records.ended(record, Fate.FINISHED, 1.0, num_tokens=10)
    records.check()


def test_a_record_tells_what_became_of_a_request() -> None:
    records = Records(BUDGET)
    record = records.begin("r", live(), 10.0)
    records.attempted(record, attempt())
    assert records.find("r") is record
    assert (record.fate, record.ttft_s) == (Fate.WAITING, None)
    records.first_token(record, 32, 10.5)
    assert record.fate is Fate.ANSWERING
    records.ended(record, Fate.FAILED, 12.0, num_tokens=7, error="it broke")
    assert records.find("r") is record
    assert (record.fate, record.ttft_s, record.num_cached_tokens) == (Fate.FAILED, 0.5, 32)
    assert (record.num_tokens, record.error) == (7, "it broke")


def test_the_oldest_is_forgotten_first_in_flight_or_not() -> None:
    records, of = Records(20_000), live()
    first = records.begin("first", of, 0.0)
    records.attempted(first, attempt())
    for number in range(50):
        answer(records, f"r{number}", of)
    assert 1 <= len(records) < 10
    assert records.find("r0") is None
    assert records.find("r49") is not None
    assert records.find("first") is None
    records.attempted(first, attempt())
    records.check()


def test_costs_that_change_all_the_time_weigh() -> None:
    """A matrix of pairs is larger than all else; it is shared until a link's change."""
    shared, own = Records(4 << 20), Records(4 << 20)
    uniform, of = snapshot([load("a"), load("b")]).costs, live()
    costs = PairCosts(uniform.setup_s.copy(), uniform.s_per_byte.copy())
    for number in range(100):
        answer(shared, f"r{number}", of, attempt(costs=costs))
        fresh = PairCosts(costs.setup_s.copy(), costs.s_per_byte.copy())
        answer(own, f"r{number}", of, attempt(costs=fresh))
    assert own.num_bytes == shared.num_bytes + 99 * (costs.setup_s.nbytes + costs.s_per_byte.nbytes)


def test_where_siblings_wait_weighs_as_where_a_prefix_is_held() -> None:
    def weight(**changes: object) -> int:
        records, tried = Records(BUDGET), attempt()
        request = tried.request._replace(**changes)  # type: ignore[arg-type]
        answer(records, "r", live(), tried._replace(request=request))
        return records.num_bytes

    one = snapshot([load("a"), load("b")]).loads.column_of({WorkerId("a"): 1})
    assert weight() < weight(num_ready=one) == weight(num_siblings=one)


def test_one_id_used_again_is_another_request() -> None:
    records, of = Records(BUDGET), live()
    for _ in range(3):
        answer(records, "same", of)
    assert len(records) == 1


def test_without_a_budget_nothing_is_kept() -> None:
    records = Records()
    record = records.begin("r", live(), 0.0)
    records.attempted(record, attempt())
    assert record.attempts == []
    records.ended(record, Fate.FINISHED, 1.0)
    assert records.find("r") is None


def test_figures_are_of_those_placed_since_the_trial_began() -> None:
    records, of = Records(), live()
    before = records.begin("before", of, 0.0)
    of.on_trial = Figures()
    for name, fate in (("a", Fate.FINISHED), ("b", Fate.FAILED), ("c", Fate.CANCELLED)):
        record = records.begin(name, of, 0.0)
        records.first_token(record, 0, 2.0)
        records.ended(record, fate, 3.0)
    records.first_token(before, 0, 9.0)
    records.ended(before, Fate.FAILED, 9.0)
    trial = of.on_trial
    assert (trial.num_placed, trial.num_ended, trial.num_errors, trial.ttft.count) == (3, 2, 1, 3)
    assert (of.since_start.num_placed, of.since_start.num_errors) == (4, 2)


def test_whoever_waits_for_a_first_token_counts_with_the_wait() -> None:
    """A policy that starves its requests has no TTFTs but those of the lucky."""
    records, of = Records(), live()
    in_flight = [records.begin(f"r{number}", of, 0.0) for number in range(10)]
    records.first_token(in_flight[0], 0, 0.1)
    figures = seen(of.on_trial, in_flight, 50.0)
    assert figures.ttft.quantile(0.05) == pytest.approx(0.1, rel=0.03)
    assert figures.ttft.quantile(0.5) == pytest.approx(50.0, rel=0.03)
    assert of.on_trial.ttft.count == 1


def test_a_shadow_decides_a_sample_again_and_counts_where_it_differs() -> None:
    of = live()
    policy = Policy(name="shadow")
    of.shadow = Shadow(policy=policy, state=policy.begin(9), sample_share=0.5)
    records, draw = Records(BUDGET), random.Random(4)
    for number in range(200):
        answer(records, f"r{number}", of, draw_attempt("round_robin", draw, num_workers=3))
    shadow = of.shadow
    assert 60 < shadow.num_evaluated < 140
    assert 20 < shadow.num_disagreed <= shadow.num_evaluated
    assert shadow.num_failed == 0
    assert shadow.price_difference_s < 0  # the default chooses what costs less


def test_a_shadow_that_raises_harms_nobody() -> None:
    of = live()

    class Broken:
        def begin(self, seed: int) -> int:
            return seed

        def choose(self, *_: object) -> None:
            raise ZeroDivisionError

    policy = Policy(rule=Broken())  # type: ignore[arg-type]
    of.shadow = Shadow(policy=policy, state=policy.begin(0), sample_share=1.0)
    records = Records(BUDGET)
    for number in range(5):
        answer(records, f"r{number}", of)
    assert (of.shadow.num_failed, of.shadow.num_evaluated) == (5, 0)


def test_regret_is_looked_for_in_a_sample() -> None:
    records, of = Records(BUDGET), live()
    busy = snapshot([load("a", backlog=((0.0, 0.2),)), load("b")], s_per_byte=1e-3)
    ready = busy.loads.column_of({WorkerId("a"): 120})
    request = PlacementRequest(num_prompt_tokens=2000, max_tokens=64, num_ready=ready)
    state = of.policy.begin(0)
    decision, _ = place(request, busy, state, of.policy)
    what = Attempt(request, busy, state, of.policy, decision)
    for number in range(640):
        answer(records, f"r{number}", of, what)  # only 32 of 1,920 tokens were there
    regret = records.regret
    assert 1 <= regret.dearer.count < 30
    assert regret.dearer.quantile(0.5) > 0.1
    assert regret.ttft_error_s / regret.dearer.count == pytest.approx(
        0.5 - (decision.ttft_s if decision else 0.0)
    )


def test_kept_snapshots_have_no_columns() -> None:
    records, of = Records(BUDGET), live()
    of.shadow = Shadow(policy=Policy(), state=Policy().begin(0), sample_share=1.0)
    answer(records, "r", of)
    record = records.find("r")
    assert record is not None
    assert "columns" not in vars(record.attempts[0].snapshot.loads)


def test_shares_are_even_and_differ_by_salt() -> None:
    keys = [f"key-{number}" for number in range(4000)]
    one, other = ([share_of(key, salt) < 0.1 for key in keys] for salt in (1, 2))
    assert 300 < sum(one) < 500
    assert 10 < sum(a and b for a, b in zip(one, other, strict=True)) < 80
