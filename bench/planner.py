"""The planner beside the best fixed number of workers in hindsight: `python -m bench.planner
[--only NAME ...] [--trace PATH ...]`.

Simulated. The planner begins with one prefill and one decode worker and knows nothing of what
comes; a worker that it asks for serves after `--start` seconds, and costs from the moment of
asking. Steady: the requests of a trace in their order, by Poisson at the trace's mean rate. The
best fixed number is the cheapest that serves `--goal` of the requests in time that ample workers
would. A day is scaled: shorter than 24 hours, which makes it harder, for a start takes as long.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import inf
from pathlib import Path

from rich.console import Console

from bench.daily import day, even
from bench.sheets import Sheet, number
from bench.simulated_planner import Planner
from cluster.errors import ConfigError
from deploy.planner.plan import Planning
from deploy.planner.planner import SizingDecision
from deploy.planner.settings import Bounds, PlannerSettings
from penstock.cli.traffic import SHIPPED_TRACE
from router.policy import Policy
from router.policy_settings import AdmissionRules, ServiceClass
from simulator.elastic import Turnover
from simulator.run import Simulation
from simulator.setting import Setting, Targets, WorkerMake
from simulator.trace import Trace, load_trace

MOST_STEADY, MOST_DAILY = 1.1, 0.7  # times the GPU hours of the best fixed number
LEAST_GOOD = 0.98  # times its goodput
HOLD_S = 600.0
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerCase:
    """Traffic, with the targets that suit it and what the planner may cost."""

    name: str
    trace: Trace
    targets: Targets
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerOutcome:
    name: str
    num_requests: int
    fixed: str  # the best in hindsight
    fixed_good_share: float
    fixed_gpu_hours: float
    good_share: float
    gpu_hours: float
    most: float
    most_workers: int
    num_decisions: int
    num_reversals: int  # the most in any ten minutes, of a pool or of both
    num_failed: int

    @property
    def gpu_ratio(self) -> float:
        return self.gpu_hours / self.fixed_gpu_hours

    @property
    def good_ratio(self) -> float:
        return self.good_share / self.fixed_good_share

    @property
    def is_met(self) -> bool:
        is_cheap, is_good = self.gpu_ratio <= self.most, self.good_ratio >= LEAST_GOOD
        return is_cheap and is_good and self.num_reversals <= 1


def steady_case(path: Path, hours: float, *, recorded: bool, limit: int | None) -> PlannerCase:
    trace = load_trace(path, limit=limit)
    if not recorded:
        rate = len(trace.requests) / (trace.duration_s or inf)  # of one request there is none
        trace = even(trace, duration_s=3600.0 * hours, rate=rate)
    name = path.name.partition(".")[0]
    return PlannerCase(name=name, trace=trace, targets=Targets(), most=MOST_STEADY)


def day_case(seed: int, hours: float, most_rate: float) -> PlannerCase:
    """Long prompts, so that few requests keep many workers busy; the longer targets suit them."""
    day_s = 3600.0 * hours
    trace = day(
        day_s=day_s,
        most_rate=most_rate,
        prompt_tokens=24_000,
        output_tokens=300,
        num_bursts=6,
        burst_s=day_s / 240,
        seed=seed,
    )
    targets = Targets(ttft_s=8.0)
    return PlannerCase(name=f"day, seed {seed}", trace=trace, targets=targets, most=MOST_DAILY)


def outcome(
    case: PlannerCase, settings: PlannerSettings, turnover: Turnover, progress: Progress
) -> PlannerOutcome:
    make = WorkerMake(block_size=case.trace.grain)  # few blocks: simulated sooner
    base = Setting(num_prefill=1, num_decode=1, prefill=make, decode=make, targets=case.targets)
    targets = case.targets
    promised = ServiceClass(name="default", ttft_s=targets.ttft_s, itl_s=targets.itl_s)
    policy = Policy(classes=(promised,), admission=AdmissionRules(rejects_early=True))
    bounds = Bounds(most_prefill=24, most_decode=24)
    plan = Planning(
        trace=case.trace,
        setting=base,
        policy=policy,
        bounds=bounds,
        goal=settings.goal,
        num_splits=2,
        looks_alone=False,
        progress=lambda text: progress(f"{case.name}: fixed, {text}"),
    ).run()
    best = plan.choice or plan.ample
    progress(f"{case.name}: the planner, beside {best.counts}")
    planner = Planner(settings, bounds, base)
    simulation = Simulation(case.trace, base, policy=policy, scaler=planner, turnover=turnover)
    report = simulation.run()
    for at_s, decision in planner.decisions:
        counts = decision.counts
        progress(f"  {at_s:6.0f} s {counts}: {decision.explain()}")
    return PlannerOutcome(
        name=case.name,
        num_requests=report.num_requests,
        fixed=str(best.counts),
        fixed_good_share=best.good_share,
        fixed_gpu_hours=best.report.gpu_s / 3600.0,
        good_share=report.num_good / report.num_requests,
        gpu_hours=report.gpu_s / 3600.0,
        most=case.most,
        most_workers=max((each.counts.num for _, each in planner.decisions), default=2),
        num_decisions=len(planner.decisions),
        num_reversals=most_reversals(planner.decisions),
        num_failed=report.num_failed,
    )


def most_reversals(decisions: Sequence[tuple[float, SizingDecision]]) -> int:
    """In any ten minutes, of the size of either pool or of both."""
    numbers: tuple[Callable[[SizingDecision], int], ...] = (
        lambda each: each.counts.prefill,
        lambda each: each.counts.decode,
        lambda each: each.counts.num,
    )
    most = 0
    for number_of in numbers:
        series = [(at_s, number_of(each)) for at_s, each in decisions]
        changes = [(at_s, b - a) for (_, a), (at_s, b) in pairwise([(0.0, 0), *series]) if a != b]
        turns = [at_s for (_, a), (at_s, b) in pairwise(changes) if a * b < 0]
        within = (sum(at_s <= each < at_s + HOLD_S for each in turns) for at_s in turns)
        most = max(most, *within, 0)
    return most


def sheet(found: Sequence[PlannerOutcome]) -> Sheet:
    columns: tuple[str, ...] = ("traffic", "requests", "best fixed", "good %", "GPU h")
    columns += ("planner: good %", "GPU h", "most workers", "decisions", "reversals")
    columns += ("goodput / best", "GPU h / best", "met")
    return Sheet(
        title="The planner beside the best fixed number",
        columns=columns,
        rows=[_row(each) for each in found],
        num_names=1,
    )


def _row(each: PlannerOutcome) -> tuple[str, ...]:
    return (
        each.name,
        str(each.num_requests),
        each.fixed,
        number(100 * each.fixed_good_share, 1),
        number(each.fixed_gpu_hours, 1),
        number(100 * each.good_share, 1),
        number(each.gpu_hours, 1),
        str(each.most_workers),
        str(each.num_decisions),
        str(each.num_reversals),
        number(each.good_ratio, 3),
        number(each.gpu_ratio, 3),
        "yes" if each.is_met else "no",
    )


def cases(flags: argparse.Namespace) -> Iterator[PlannerCase]:
    wants = flags.only or ["steady", "day"]
    if "steady" in wants:
        for path in flags.trace or [SHIPPED_TRACE]:
            yield steady_case(path, flags.hours, recorded=flags.recorded, limit=flags.limit)
    if "day" in wants:
        for seed in map(int, flags.seeds.split(",")):
            yield day_case(seed, flags.day_hours, flags.day_rate)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.planner", description=__doc__)
    parser.add_argument("--only", action="append", choices=("steady", "day"), help="repeatable")
    parser.add_argument("--trace", type=Path, action="append", help="repeatable; default: shipped")
    parser.add_argument("--recorded", action="store_true", help="traces as they came, not evenly")
    parser.add_argument("--limit", type=int, help="requests of each trace")
    parser.add_argument("--hours", type=float, default=2.0, help="of steady traffic")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="of days")
    parser.add_argument("--day-hours", type=float, default=6.0)
    parser.add_argument("--day-rate", type=float, default=2.0, help="requests a second at noon")
    parser.add_argument("--start", type=float, default=120.0, help="seconds until a worker serves")
    parser.add_argument("--goal", type=float, default=PlannerSettings().goal)
    parser.add_argument("--head-room", type=float, default=PlannerSettings().head_room)
    parser.add_argument("--json", type=Path, help="write the figures there")
    try:
        return _run(parser.parse_args())
    except ConfigError as error:
        sys.exit(str(error))


def _run(flags: argparse.Namespace) -> int:
    begin_s = time.monotonic()

    def tell(text: str) -> None:
        print(f"[{time.monotonic() - begin_s:5.0f} s] {text}", file=sys.stderr, flush=True)

    settings = replace(PlannerSettings(), goal=flags.goal, head_room=flags.head_room)
    turnover = Turnover(start_s=flags.start)
    found = []
    for case in cases(flags):
        found.append(outcome(case, settings, turnover, tell))
        print(sheet(found[-1:]).as_markdown(), flush=True)
    Console(width=160).print(sheet(found).as_rich())
    if flags.json:
        flags.json.write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n")
    return 0 if all(each.is_met for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
