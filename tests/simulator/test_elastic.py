"""Workers that come and go while a simulation runs."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from cluster.errors import ConfigError
from cluster.types import Role, WorkerId
from router.placer import Placer
from simulator.elastic import Staff, Staffing, Turnover
from simulator.faults import Crash
from simulator.run import Simulation
from simulator.setting import Setting
from simulator.synthetic import shared_prefixes
from simulator.trace import Trace

SETTING = Setting(num_prefill=1, num_decode=1)
START_S = 20.0


@dataclass
class Plan:
    """So many from then on: (seconds, what is wanted)."""

    steps: tuple[tuple[float, Staffing], ...]
    interval_s: float = 5.0

    def wanted(self, now_s: float, placer: Placer, staff: Mapping[Role, Staff]) -> Staffing:
        wanted = Staffing(num_prefill=1, num_decode=1)
        for at_s, then in self.steps:
            if now_s >= at_s:
                wanted = then
        num_flips = wanted.num_flips if staff[Role.PREFILL].num_there < wanted.num_prefill else 0
        return Staffing(
            num_prefill=wanted.num_prefill, num_decode=wanted.num_decode, num_flips=num_flips
        )


def traffic(rate: float = 2.0) -> Trace:
    return shared_prefixes(
        num_requests=round(120 * rate),
        rate=rate,
        num_groups=4,
        prefix_tokens=1024,
        own_tokens=600,
        output_tokens=60,
    )


def simulated(*steps: tuple[float, Staffing]) -> Simulation:
    turnover = Turnover(start_s=START_S, flip_s=2.0)
    return Simulation(traffic(), SETTING, scaler=Plan(steps), turnover=turnover, check_s=2.0)


UP = Staffing(num_prefill=2, num_decode=3)
DOWN = Staffing(num_prefill=1, num_decode=1)
FLIPPED = Staffing(num_prefill=3, num_decode=2, num_flips=1)


def test_nobody_notices_that_workers_come_and_go() -> None:
    simulation = simulated((10.0, UP), (60.0, DOWN), (90.0, Staffing(num_prefill=0, num_decode=2)))
    report = simulation.run()
    assert report.num_finished == report.num_requests
    assert report.num_failed == report.num_moved == 0
    simulation.cluster.check_empty()
    assert sorted(simulation.cluster.sites) == [WorkerId("decode-0"), WorkerId("decode-1")]


def test_gpus_count_from_the_asking_to_the_release() -> None:
    fixed = Simulation(traffic(), SETTING).run()
    simulation = simulated((10.0, UP), (60.0, DOWN))
    report = simulation.run()
    more_s = (report.gpu_s / 4.0) - 2.0 * report.duration_s
    assert fixed.gpu_s == pytest.approx(8.0 * fixed.duration_s)
    # Three more, for fifty seconds and their drains.
    assert 150.0 <= more_s < 180.0


def test_who_is_asked_for_serves_after_its_start() -> None:
    """Until then all is as if nobody had been."""
    late = simulated((10.0, UP))
    alone = simulated()
    assert late.run().prefill_busy_s > 0.0
    assert alone.run().num_finished == 240
    first = {at_s: ttft_s for at_s, ttft_s in _ttfts(late) if at_s < 10.0 + START_S - 10.0}
    same = dict(_ttfts(alone))
    assert first
    assert all(same[at_s] == ttft_s for at_s, ttft_s in first.items())


def test_who_has_not_begun_goes_first() -> None:
    simulation = simulated((10.0, UP), (20.0, DOWN))
    report = simulation.run()
    assert report.gpu_s / 4.0 == pytest.approx(2.0 * report.duration_s + 3 * 10.0)


def test_a_flip_takes_no_start() -> None:
    simulation = simulated((10.0, UP), (60.0, FLIPPED))
    report = simulation.run()
    assert report.num_finished == report.num_requests
    assert simulation.elastic is not None
    assert simulation.elastic.staff(Role.PREFILL) == Staff(num_serving=3)
    assert simulation.elastic.staff(Role.DECODE) == Staff(num_serving=2)
    # No worker beyond the five: its GPUs are never counted twice.
    most_s = 2.0 * 10.0 + 5.0 * (report.duration_s - 10.0)
    assert report.gpu_s / 4.0 == pytest.approx(most_s)


def test_a_drain_is_bounded() -> None:
    """What is left then goes on elsewhere, from where it was."""
    turnover = Turnover(start_s=5.0, drain_s=0.01)
    plan = Plan(((10.0, UP), (60.0, DOWN)))
    trace = traffic(rate=6.0)
    report = Simulation(trace, SETTING, scaler=plan, turnover=turnover, check_s=2.0).run()
    assert report.num_finished == report.num_requests
    assert report.num_moved > 0


def test_faults_beside_a_scaler_are_refused() -> None:
    fault = Crash(worker=WorkerId("decode-0"), at_s=1.0)
    with pytest.raises(ConfigError, match="Faults befall workers that stay"):
        Simulation(traffic(), SETTING, faults=[fault], scaler=Plan(()))


def _ttfts(simulation: Simulation) -> list[tuple[float, float]]:
    samples = simulation.samples()
    return list(zip(samples.arrival_s, samples.ttft_s, strict=True))
