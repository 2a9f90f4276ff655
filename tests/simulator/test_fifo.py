"""Rules told apart: what each promises, on traffic where it can be seen."""

from dataclasses import replace
from typing import Any

import pytest

from cluster.types import PrefillCost
from router.policies.least_work import LeastWork
from router.policies.lmetric import LMetric
from router.policies.longest_prefix import LongestPrefix
from router.policies.mooncake_algorithm1 import MooncakeAlgorithm1
from router.policies.priced import Priced
from router.policies.round_robin import RoundRobin
from simulator.fifo import FifoReplay, FifoReport, FifoSetting
from simulator.synthetic import conversations, fan_outs
from simulator.trace import Trace

COST = PrefillCost(c0=0.03, c1=1.8e-4, c2=4e-6, c3=2.5e-9)
SETTING = FifoSetting(num_workers=4, cache_tokens=10_000_000, cost=COST)
TALKS = conversations(
    num_sessions=400,
    rate=0.6,
    num_turns=4,
    system_tokens=512,
    turn_tokens=4000,
    output_tokens=300,
    think_s=30.0,
)


def run(rule: Any, trace: Trace = TALKS, setting: FifoSetting = SETTING) -> FifoReport:
    return FifoReplay(trace, rule, setting, seed=1).run()


def test_one_prompt_alone_takes_what_it_costs() -> None:
    trace = fan_outs(
        num_prompts=3, num_siblings=1, shared_tokens=512, own_tokens=88, output_tokens=1, gap_s=9
    )
    report = run(RoundRobin(), trace)
    assert report.mean_ttft_s == pytest.approx(COST.seconds(600, 600))
    assert report.hit_share == 0.0
    assert report.num_requests == 3


def test_siblings_wait_for_each_other_and_reuse_what_is_computed() -> None:
    trace = fan_outs(
        num_prompts=1, num_siblings=5, shared_tokens=4096, own_tokens=32, output_tokens=1
    )
    report = run(LeastWork(), trace, replace(SETTING, num_workers=1))
    assert report.hit_share == pytest.approx(4 * 4096 / (5 * 4128))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_report() -> None:
    assert run(Priced()) == run(Priced())


@pytest.mark.slow
def test_the_default_is_no_worse_than_the_others() -> None:
    default = run(Priced())
    others = [run(rule) for rule in (RoundRobin(), LeastWork(), LMetric(), MooncakeAlgorithm1())]
    assert default.mean_ttft_s <= 1.05 * min(other.mean_ttft_s for other in others)
    assert default.hit_share >= 0.95 * max(other.hit_share for other in others)


def test_a_fetch_replaces_a_computation() -> None:
    fetching, not_fetching = run(Priced()), run(Priced(may_fetch=False))
    assert fetching.fetched_bytes > 0 == not_fetching.fetched_bytes
    assert fetching.mean_ttft_s < not_fetching.mean_ttft_s


def test_a_fetch_is_not_made_where_its_copy_drives_out_more() -> None:
    """Caches too small for all: whoever copies freely holds less of everything."""
    small = replace(SETTING, cache_tokens=500_000)
    default = run(Priced(), setting=small)
    careless = run(Priced(eviction_weight=0.0), setting=small)
    assert default.mean_ttft_s < careless.mean_ttft_s
    assert default.hit_share > careless.hit_share


def test_the_longest_prefix_alone_follows_a_shared_system_prompt() -> None:
    """The trap of a shared system prompt: whoever had it first gets everything."""
    assert run(LongestPrefix()).mean_ttft_s > 5 * run(Priced()).mean_ttft_s
