"""The planner against the real router and schedulers in virtual time: the bench in small."""

import pytest

from bench.daily import day, even
from bench.planner import most_reversals
from bench.simulated_planner import Planner
from deploy.planner.settings import Bounds, PlannerSettings
from router.policy import Policy
from router.policy_settings import AdmissionRules, ServiceClass
from simulator.elastic import Turnover
from simulator.report import Report
from simulator.run import Simulation
from simulator.setting import Setting, Targets, WorkerMake
from simulator.synthetic import shared_prefixes
from simulator.trace import Trace

MAKE = WorkerMake(block_size=512)
START_S = 60.0


def planned(trace: Trace) -> tuple[Report, Planner, Simulation]:
    base = Setting(
        num_prefill=1, num_decode=1, prefill=MAKE, decode=MAKE, targets=Targets(ttft_s=8.0)
    )
    promised = ServiceClass(name="default", ttft_s=8.0, itl_s=0.1)
    policy = Policy(classes=(promised,), admission=AdmissionRules(rejects_early=True))
    planner = Planner(PlannerSettings(), Bounds(), base)
    simulation = Simulation(
        trace, base, policy=policy, scaler=planner, turnover=Turnover(start_s=START_S)
    )
    return simulation.run(), planner, simulation


@pytest.mark.prove
@pytest.mark.slow
def test_steady_traffic_gets_what_it_needs_and_no_more() -> None:
    """2.4 s of work a request, 1.2 requests a second: three workers would be busy without rest."""
    once = shared_prefixes(
        num_requests=50,
        rate=1.0,
        num_groups=50,
        prefix_tokens=512,
        own_tokens=23_500,
        output_tokens=100,
    )
    trace = even(once, duration_s=1800.0, rate=0.9, seed=3)
    report, planner, simulation = planned(trace)
    assert report.num_failed == report.num_moved == 0
    assert most_reversals(planner.decisions) <= 1
    # Ten sixtieths are lost until the first are there.
    assert report.num_good >= 0.85 * report.num_requests
    assert 4.0 <= report.gpu_s / MAKE.num_gpus / report.duration_s <= 9.0
    simulation.cluster.check_empty()


@pytest.mark.prove
@pytest.mark.slow
def test_a_day_grows_and_shrinks() -> None:
    """Three workers are busy at the most. Two hours: it looks back half an hour, and would still
    be sure of nothing at the end of one."""
    trace = day(
        day_s=7200.0,
        most_rate=1.2,
        prompt_tokens=20_000,
        output_tokens=100,
        num_bursts=1,
        burst_s=30.0,
        seed=1,
    )
    report, planner, _ = planned(trace)
    sizes = [each.counts.num for _, each in planner.decisions]
    assert max(sizes) >= 4
    assert sizes[-1] < max(sizes)
    assert most_reversals(planner.decisions) <= 1
    assert report.num_good >= 0.95 * report.num_requests
    # What it takes all the time to serve the most that comes.
    assert report.gpu_s / MAKE.num_gpus <= 0.9 * max(sizes) * report.duration_s


def test_an_even_trace_shares_nothing_between_its_laps() -> None:
    once = shared_prefixes(
        num_requests=10,
        rate=1.0,
        num_groups=1,
        prefix_tokens=1024,
        own_tokens=10,
        output_tokens=5,
    )
    trace = even(once, duration_s=100.0, rate=1.0)
    firsts = [each.grains[0] for each in trace.requests]
    assert len(set(firsts)) == -(-len(firsts) // 10)
    assert trace.duration_s <= 100.0


def test_a_day_has_its_ratio_and_its_bursts() -> None:
    quiet = day(
        day_s=8000.0, most_rate=4.0, prompt_tokens=100, output_tokens=10, num_bursts=1, burst_s=1.0
    )
    hours = [0] * 8
    for each in quiet.requests:
        hours[int(each.arrival_s // 1000.0)] += 1
    assert hours[3] > 4 * hours[0]
    assert hours[3] == pytest.approx(4 * 1000 * 0.96, rel=0.1)
    busy = day(
        day_s=8000.0,
        most_rate=4.0,
        prompt_tokens=100,
        output_tokens=10,
        num_bursts=4,
        burst_s=500.0,
    )
    assert len(busy.requests) > 1.2 * len(quiet.requests)
