"""Each named rule on loads where what it promises can be read off."""

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pytest

from cluster.types import WorkerId
from router.load import Load, Loads
from router.pair_costs import CANNOT, PairCosts
from router.policies.aibrix_prefix_cache import AibrixPrefixCache
from router.policies.dynamo_cost import DynamoCost
from router.policies.least_work import LeastWork
from router.policies.llmd_profile import LlmdProfile
from router.policies.lmetric import LMetric
from router.policies.longest_prefix import LongestPrefix
from router.policies.mooncake_algorithm1 import MooncakeAlgorithm1
from router.policies.power_of_two import PowerOfTwo
from router.policies.preble_e2 import PrebleE2
from router.policies.priced import Priced
from router.policies.random import Random
from router.policies.round_robin import RoundRobin
from router.policies.rule import Computing, Prompt
from router.policies.sglang_cache_aware import SglangCacheAware

RULES: list[Any] = [
    AibrixPrefixCache(),
    DynamoCost(),
    LeastWork(),
    LlmdProfile(),
    LlmdProfile(picker="weighted-random-picker", max_waiting=3),
    LlmdProfile(picker="random-picker"),
    LMetric(),
    LongestPrefix(),
    MooncakeAlgorithm1(),
    PowerOfTwo(),
    PrebleE2(),
    Priced(),
    Random(),
    RoundRobin(),
    SglangCacheAware(),
]


class Worker(NamedTuple):
    load: Load
    num_cached: int


def load(number: int, *, num_cached: int = 0, wait_s: float = 0.0, **values: Any) -> Worker:
    values = {"num_prompts": values.get("num_waiting", 0), "c0": 0.01, "c1": 1e-3, **values}
    name = WorkerId(f"worker-{number}")
    return Worker(Load(worker=name, booked_s=wait_s, token_bytes=1, **values), num_cached)


def choose(
    rule: Any, workers: list[Worker], state: Any, fetch_s_per_token: float = CANNOT
) -> tuple[Computing, Any]:
    cached = np.array([worker.num_cached for worker in workers], dtype=np.float64)
    costs = PairCosts.uniform(len(workers), setup_s=0.0, s_per_byte=fetch_s_per_token)
    prompt = Prompt(num_tokens=1000, cached=cached, ready=cached, costs=costs)
    choice, state = rule.choose(prompt, Loads([worker.load for worker in workers]), state)
    return choice, state


def chosen(rule: Any, workers: list[Worker], times: int = 1) -> list[int]:
    state, indices = rule.begin(7), []
    for _ in range(times):
        choice, state = choose(rule, workers, state)
        indices.append(choice.index)
    return indices


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_rule_is_a_function_of_its_seed_and_draws_equals_alike(rule: Any) -> None:
    loads = [load(i) for i in range(4)]
    indices = chosen(rule, loads, 400)
    assert indices == chosen(rule, loads, 400)
    assert set(indices) <= set(range(4))
    assert chosen(rule, loads[:1], 3) == [0, 0, 0]
    assert min(Counter(indices).values()) > 50


def test_round_robin_goes_around() -> None:
    assert chosen(RoundRobin(), [load(0), load(1), load(2)], 4) == [1, 2, 0, 1]


def test_power_of_two_never_takes_the_worst() -> None:
    busy = [load(i, num_running=i) for i in range(3)]
    assert 2 not in chosen(PowerOfTwo(), busy, 100)
    full = [load(i, num_free_tokens=100 * (i + 1), num_total_tokens=1000) for i in range(3)]
    assert 0 not in chosen(PowerOfTwo(), full, 100)


def test_least_work_sees_only_the_queue() -> None:
    assert chosen(LeastWork(), [load(0, num_cached=900, wait_s=2.0), load(1, wait_s=1.0)]) == [1]


def test_lmetric_multiplies_new_tokens_with_the_batch() -> None:
    loads = [load(0, num_cached=600, num_running=2), load(1, num_running=0)]
    assert chosen(LMetric(), loads) == [1]  # 400 x 3 against 1000 x 1
    loads = [load(0, num_cached=700, num_running=2), load(1, num_running=0)]
    assert chosen(LMetric(), loads) == [0]  # 300 x 3


def test_algorithm_1_fetches_what_is_much_longer_elsewhere() -> None:
    holder = load(0, num_cached=800, wait_s=5.0)
    choice, _ = choose(MooncakeAlgorithm1(), [holder, load(1)], 0, fetch_s_per_token=1e-5)
    assert (choice.index, choice.source) == (1, 0)
    near = load(1, num_cached=500)
    choice, _ = choose(MooncakeAlgorithm1(), [holder, near], 0, fetch_s_per_token=1e-5)
    assert (choice.index, choice.source) == (1, None)


def test_sglang_is_faithful_until_the_holder_is_far_above_the_mean() -> None:
    others = [load(1), load(2, num_running=7)]
    assert chosen(SglangCacheAware(), [load(0, num_cached=900, num_running=5), *others]) == [0]
    assert chosen(SglangCacheAware(), [load(0, num_cached=900, num_running=13), *others]) == [1]
    fixed = SglangCacheAware(balance_abs_threshold=1)
    assert chosen(fixed, [load(0, num_cached=900, num_running=8), *others]) == [1]


def test_sglang_breaks_ties_by_the_expected_wait_and_not_by_position() -> None:
    busy, calm = ({"num_waiting": 1, "num_prefill_tokens": num} for num in (9000, 200))
    holders = [load(0, num_cached=500, **busy), load(1, num_cached=500, **calm)]
    assert chosen(SglangCacheAware(), [*holders, load(2)]) == [1]
    nobody_matches = [load(0, **busy), load(1, **calm), load(2, num_running=1)]
    assert chosen(SglangCacheAware(), nobody_matches) == [1]
    half_full = load(0, num_free_tokens=500, num_total_tokens=1000)
    assert chosen(SglangCacheAware(), [half_full, load(1)]) == [1]


def test_sglang_leaves_out_who_is_overloaded_if_asked_while_others_are_not() -> None:
    rule = SglangCacheAware(overload_waiting=8, overload_kv_usage=0.8)
    holder = load(0, num_cached=900, num_waiting=8)
    assert chosen(rule, [holder, load(1, num_running=7)]) == [1]
    assert chosen(rule, [holder, load(1, num_waiting=9)]) == [0]  # all are: the fewest requests
    full = load(0, num_cached=900, num_free_tokens=200, num_total_tokens=1000)
    assert chosen(rule, [full, load(1, num_running=7)]) == [1]


def test_dynamo_counts_blocks_of_prefill_and_decode() -> None:
    # 63 new blocks of 16: 63 - 50 + 63 against 63 + 63, less the holder's 60 in decode.
    holder = load(0, num_cached=800, num_context_tokens=16 * 49)
    assert chosen(DynamoCost(), [holder, load(1)]) == [0]
    holder = load(0, num_cached=800, num_context_tokens=16 * 51)
    assert chosen(DynamoCost(), [holder, load(1)]) == [1]


def test_aibrix_takes_the_best_match_that_is_not_far_above_the_mean() -> None:
    loads = [load(0, num_cached=500, num_running=3), load(1, num_cached=900, num_running=4)]
    assert chosen(AibrixPrefixCache(), [*loads, load(2)]) == [1]
    loads = [load(0), load(1, num_cached=900, num_running=17)]
    assert chosen(AibrixPrefixCache(), loads) == [0]
    idle_holder = load(2, num_cached=100)
    assert set(chosen(AibrixPrefixCache(), [*loads, idle_holder], 20)) == {2}


def test_aibrix_draws_among_equal_matches() -> None:
    """Equal in whole per cent; the least busy of these, whichever."""
    holders = [load(i, num_cached=500 + i, num_running=1 + (i == 0)) for i in range(3)]
    assert set(chosen(AibrixPrefixCache(), [*holders, load(3)], 40)) == {1, 2}


def test_e2_exploits_only_what_is_mostly_matched() -> None:
    loads = [load(0, num_cached=600, wait_s=3.0), load(1)]
    assert chosen(PrebleE2(), loads) == [0]
    loads = [load(0, num_cached=400, wait_s=3.0), load(1)]
    assert chosen(PrebleE2(), loads) == [1]


def test_e2_pays_for_evicting_what_was_used_lately() -> None:
    """As much as fits was computed on one of two, and nothing on the other, which waits longer."""
    full, waiting = load(0, num_total_tokens=1000), load(1, num_total_tokens=1000, wait_s=0.5)
    assert chosen(PrebleE2(), [full, waiting], 2) == [0, 1]
    roomy = load(0, num_total_tokens=2000)
    assert chosen(PrebleE2(), [roomy, waiting], 2) == [0, 0]


def test_a_profile_compares_no_more_of_a_prompt_than_it_is_told() -> None:
    loads = [load(0, num_cached=900), load(1, num_cached=200)]
    assert set(chosen(LlmdProfile(max_prefix_tokens=200), loads, 20)) == {0, 1}
    assert set(chosen(LlmdProfile(), loads, 20)) == {0}


def test_a_profile_adds_weighted_scores() -> None:
    loads = [load(0, num_cached=1000, num_waiting=4), load(1)]
    assert chosen(LlmdProfile(), loads) == [0]  # 3 x 1 against 2 x 1
    alike = LlmdProfile(weights={"queue-scorer": 4.0, "prefix-cache-scorer": 3.0})
    assert chosen(alike, loads) == [1]
    assert set(chosen(LlmdProfile(max_waiting=3), loads, 20)) == {1}


def test_the_price_of_work_rises_with_the_backlog() -> None:
    """Idle: a second of waiting is worth more than a second of work elsewhere. Busy: less."""
    idle = [load(0, num_cached=900, wait_s=1.9), load(1)]
    assert chosen(Priced(), idle) == [1]
    busy = [load(0, num_cached=900, wait_s=3.9, num_waiting=4), load(1, wait_s=2.0, num_waiting=4)]
    assert chosen(Priced(), busy) == [0]


def test_a_fetch_that_takes_longer_than_computing_is_not_made() -> None:
    slow, fast = 2e-3, 1e-5
    for seconds, source in ((slow, None), (fast, 0)):
        loads = [load(0, num_cached=900, wait_s=50.0), load(1)]
        choice, _ = choose(Priced(), loads, Priced().begin(0), fetch_s_per_token=seconds)
        assert (choice.index, choice.source) == (1, source)
