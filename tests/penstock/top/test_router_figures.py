"""What routers tell of traffic and policy, and what a change of policy did."""

import pytest

from penstock.cli.top.plain import policy_text
from penstock.cli.top.router_figures import TURNS, router_figures, turn
from tests.penstock.top.told import Numbers, histogram, page, series, track

TTFT = "penstock_time_to_first_token_seconds"
ITL = "penstock_inter_token_seconds"
BOUNDS = (0.1, 0.2, 0.4, 0.8)


def told(num: int, *, ttft_s: list[float], generation: int = 1, more: Numbers | None = None) -> str:
    return page(
        "router",
        {
            series("penstock_requests", outcome="finished", reason=""): num,
            series("penstock_generated_tokens"): 50 * num,
            series("penstock_prompt_tokens"): 100 * num,
            series("penstock_cached_tokens"): 25 * num,
            **histogram(TTFT, ttft_s, BOUNDS),
            **histogram(ITL, [0.01] * num, (0.005, 0.02)),
            series("penstock_requests_in_flight"): 4,
            series("penstock_policy_generation", side="active"): generation,
            series("penstock_config_info", hash="abcdef0123456789", generation=str(generation)): 1,
            series("penstock_config_last_reload_successful"): 1,
            series("penstock_store_up"): 1,
            **(more or {}),
        },
    )


def outcome(what: str, reason: str) -> str:
    return series("penstock_requests", outcome=what, reason=reason)


def test_traffic_is_of_the_window_and_errors_of_the_last_minute() -> None:
    errors = {
        outcome("refused", "OVERLOADED"): 7,
        outcome("failed", "WORKER_LOST"): 2,
        outcome("failed", "NO_WORKER"): 1,
        outcome("cancelled", ""): 50,
    }
    before = {**dict.fromkeys(errors, 0), outcome("failed", "NO_WORKER"): 1}
    kept = track(
        (0, told(10, ttft_s=[0.05] * 10, more=before)),
        (50, told(100, ttft_s=[0.05] * 100, more=errors)),
        (60, told(120, ttft_s=[0.05] * 100 + [0.3] * 20, more=errors)),
    )
    found = router_figures([kept], 10)
    traffic = found.traffic
    assert (traffic.requests_per_s, traffic.tokens_per_s) == (2, 100)
    assert 0.2 <= (traffic.ttft_p50_s or 0) <= (traffic.ttft_p99_s or 0) <= 0.4
    assert traffic.hit_share == 0.25
    assert traffic.error_share == 0
    assert list(found.errors.items()) == [("OVERLOADED", 7), ("WORKER_LOST", 2)]
    assert (found.num_in_flight, found.is_store_up) == (4, True)
    assert (found.policy.generation, found.policy.canary) == (1, None)


def test_several_routers_count_as_one() -> None:
    kept = [track((0, told(0, ttft_s=[])), (10, told(num, ttft_s=[0.3] * num))) for num in (10, 30)]
    found = router_figures(kept, 10)
    assert found.traffic.requests_per_s == 4
    assert found.num_in_flight == 8


def test_without_traffic_there_are_no_latencies() -> None:
    found = router_figures([track((0, told(9, ttft_s=[])), (10, told(9, ttft_s=[])))], 10)
    assert found.traffic.requests_per_s == 0
    assert (found.traffic.ttft_p50_s, found.traffic.itl_p99_s, found.traffic.hit_share) == (
        (None,) * 3
    )
    assert router_figures([], 10).traffic.requests_per_s is None


def test_a_policy_on_trial_is_told_with_what_came_of_it() -> None:
    canary = {
        series("penstock_policy_generation", side="canary"): 2,
        series("penstock_canary_traffic_ratio"): 0.05,
        series("penstock_trial_requests", side="canary"): 40,
        series("penstock_trial_errors", side="canary"): 3,
    }
    found = router_figures([track((0, told(1, ttft_s=[], more=canary)))], 10)
    assert policy_text(found.policy) == (
        "generation 1 (abcdef01); ON TRIAL generation 2 for 5.0 % of the requests:"
        " 40 placed, 3 failed"
    )
    quiet = router_figures([track((0, told(1, ttft_s=[])))], 10)
    assert policy_text(quiet.policy) == "generation 1 (abcdef01), none on trial"


def test_what_a_change_of_policy_did_is_seen_beside_what_was_before() -> None:
    slow, fast = [0.3] * 40, [0.05] * 60
    kept = track(
        (0, told(0, ttft_s=[])),
        (20, told(40, ttft_s=slow)),
        (22, told(40, ttft_s=slow, generation=2)),
        (32, told(100, ttft_s=[*slow, *fast], generation=2)),
        turns=TURNS,
    )
    found = turn([kept])
    assert found is not None
    assert (found.generation, found.before_s, found.after_s) == (2, 20, 10)
    assert (found.before.requests_per_s, found.after.requests_per_s) == (2, 6)
    assert (found.after.ttft_p50_s or 0) < 0.1 < 0.2 < (found.before.ttft_p50_s or 0)
    assert turn([track((0, told(0, ttft_s=[])), (20, told(40, ttft_s=slow)), turns=TURNS)]) is None


def test_a_change_is_remembered_when_all_else_of_that_time_is_forgotten() -> None:
    looks = [(10.0 * at, told(20 * at, ttft_s=[], generation=1 + (at > 2))) for at in range(50)]
    kept = track(*looks, keep_s=30, turns=TURNS)
    found = turn([kept])
    assert found is not None
    assert (found.before_s, found.after_s) == (20, 460)
    assert found.after.requests_per_s == 2


def test_a_change_just_now_has_no_figures_yet() -> None:
    kept = track((0, told(0, ttft_s=[])), (2, told(9, ttft_s=[], generation=2)), turns=TURNS)
    found = turn([kept])
    assert found is not None
    assert (found.before.ttft_p50_s, found.after.requests_per_s) == (None, None)


@pytest.mark.parametrize(("up", "is_up"), [(1, True), (0, False)])
def test_a_store_that_is_away_is_told(up: int, is_up: bool) -> None:
    kept = track((0, told(1, ttft_s=[], more={series("penstock_store_up"): up})))
    assert router_figures([kept], 10).is_store_up is is_up
