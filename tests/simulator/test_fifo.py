"""Rules told apart: what each promises, on traffic where it can be seen."""

from dataclasses import replace
from typing import Any

import pytest

from cluster.errors import ConfigError
from cluster.types import GrainHash, PrefillCost, WorkerId
from router.policies.least_work import LeastWork
from router.policies.lmetric import LMetric
from router.policies.longest_prefix import LongestPrefix
from router.policies.mooncake_algorithm1 import MooncakeAlgorithm1
from router.policies.priced import Priced
from router.policies.round_robin import RoundRobin
from simulator.fifo import FifoReplay, FifoReport, FifoSetting
from simulator.fifo_worker import FifoWorker, GrainCache
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
FEW = replace(TALKS, requests=TALKS.requests[:300])


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


def test_workers_are_busy_until_the_last_prompt_is_done() -> None:
    """However short the time was in which the prompts came."""
    burst = fan_outs(
        num_prompts=8, num_siblings=4, shared_tokens=4096, own_tokens=32, output_tokens=1
    )
    assert run(RoundRobin(), burst, replace(SETTING, num_workers=1)).busy_share == pytest.approx(1)
    assert 0.8 < run(RoundRobin(), burst).busy_share <= 1


def test_without_a_link_nothing_is_fetched() -> None:
    alone = replace(SETTING, fetch_bytes_per_s=None)
    assert run(Priced(), FEW, alone) == run(Priced(may_fetch=False), FEW, alone)
    assert run(MooncakeAlgorithm1(), FEW, alone).fetched_bytes == 0


def test_a_slow_worker_that_is_known_gets_less() -> None:
    """One that believes that it is like the others is noticed only by the prompts that stay."""
    trace = fan_outs(
        num_prompts=200, num_siblings=1, shared_tokens=4096, own_tokens=32, output_tokens=1,
        gap_s=0.4,
    )  # fmt: skip
    known = run(LeastWork(), trace, replace(SETTING, slowness=4.0))
    unknown = run(LeastWork(), trace, replace(SETTING, slowness=4.0, is_slowness_known=False))
    assert run(LeastWork(), trace).mean_ttft_s < known.mean_ttft_s < unknown.mean_ttft_s
    assert known.predicted_ttft_s == pytest.approx(known.mean_ttft_s)
    assert unknown.predicted_ttft_s < 0.95 * unknown.mean_ttft_s


def test_a_late_worker_reports_what_is_left_and_never_less_than_nothing() -> None:
    """Two prompts of 0.1 s by its cost, 0.3 s in truth; a third joins them."""
    worker = FifoWorker(WorkerId("w"), COST, GrainCache(9), GrainCache(9), factor=3.0)

    def submit(now_s: float) -> float:
        return worker.submit((), 1, now_s=now_s, ready_s=now_s, service_s=0.1, noise=1.0)

    assert submit(0.0) == pytest.approx(0.1)
    assert submit(0.0) == pytest.approx(0.2)
    worker.settle(0.25)
    assert worker.ahead_s(0.05) == pytest.approx(0.15)
    assert worker.ahead_s(0.25) == pytest.approx(0.1)  # the first should be done: nothing is left
    worker.settle(0.35)
    assert worker.ahead_s(0.35) == pytest.approx(0.05)  # of the second, which began at 0.3
    assert submit(0.35) == pytest.approx(0.5)
    assert worker.free_s == pytest.approx(0.9)
    worker.settle(0.9)
    assert worker.ahead_s(0.9) == 0.0


def test_siblings_are_counted_while_they_wait_and_forgotten_with_the_last() -> None:
    worker = FifoWorker(WorkerId("w"), COST, GrainCache(9), GrainCache(9))
    shared = GrainHash(b"shared")
    for behind in (shared, shared, None):
        worker.submit((), 1, now_s=0.0, ready_s=0.0, service_s=0.1, noise=1.0, behind=behind)
    worker.settle(0.15)
    assert worker.behind == {shared: 1, None: 1}
    worker.settle(0.35)
    assert not list(worker.behind)


def test_noise_is_of_the_request_and_of_mean_one() -> None:
    noisy = replace(SETTING, noise=0.5)
    quiet, first, again = (run(LMetric(), FEW, each) for each in (SETTING, noisy, noisy))
    assert first == again != quiet
    assert first.busy_share == pytest.approx(quiet.busy_share, rel=0.15)
    assert first.p99_ttft_s > quiet.p99_ttft_s


@pytest.mark.parametrize("wrong", [{"slowness": 0.0}, {"noise": -0.1}, {"noise": 9.0}])
def test_workers_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="a multiple of the others' time"):
        replace(SETTING, **wrong)
