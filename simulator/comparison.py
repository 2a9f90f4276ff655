"""Many rules on one trace in several settings, each over several seeds: the rows of a table."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean
from typing import Any

from cluster.types import PrefillCost
from router.policies.mooncake_algorithm1 import MooncakeAlgorithm1
from router.policies.priced import Priced
from router.policies.rule import Rule
from simulator.fifo import FifoReplay, FifoReport, FifoSetting
from simulator.trace import Trace

# Published fits of a 70-billion model, as in Preble's code (seconds and tokens).
COSTS = {
    "70b-2gpu": PrefillCost(c0=28.93e-3, c1=0.18223e-3, c2=4.00e-6, c3=2.55e-9),
    "70b-4gpu": PrefillCost(c0=18.67e-3, c1=0.07988e-3, c2=2.69e-6, c3=7.44e-10),
}
FETCHING = (Priced, MooncakeAlgorithm1)  # rules that have a prefix fetched, unless told not to
# (done, all, what runs): one step a seed of a rule in a setting
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    rule: str
    setting: FifoSetting
    report: FifoReport  # the mean over the seeds


def compare(
    traces: Sequence[Trace],
    rules: Mapping[str, Rule[Any]],
    settings: Sequence[FifoSetting],
    *,
    progress: Progress = lambda done, num, what: None,
) -> Iterator[Row]:
    """A row at a time, in the order of the rules; `traces`: the traffic of each seed. Where
    nothing can be fetched, rules do not plan to."""
    num, done = len(rules) * len(settings) * len(traces), 0
    for name, rule in rules.items():
        for setting in settings:
            placed = rule if setting.fetch_bytes_per_s else without_fetch(rule)
            reports = []
            for seed, trace in enumerate(traces):
                progress(done, num, f"{name}, {setting.num_workers} workers")
                reports.append(FifoReplay(trace, placed, setting, seed=seed).run())
                done += 1
            yield Row(rule=name, setting=setting, report=mean_of(reports))
    progress(num, num, "done")


def without_fetch(rule: Rule[Any]) -> Rule[Any]:
    """The same, of workers none of which reaches another."""
    return replace(rule, may_fetch=False) if isinstance(rule, FETCHING) else rule


def ideal_hit_share(trace: Trace) -> float:
    """Gives the hit share of an endless cache shared by all."""
    return trace.ideal_hit_tokens() / trace.num_prompt_tokens


def mean_of(reports: Sequence[FifoReport]) -> FifoReport:
    means = {
        field.name: fmean(getattr(report, field.name) for report in reports)
        for field in fields(FifoReport)
    }
    for count in ("num_requests", "fetched_bytes"):
        means[count] = round(means[count])
    return FifoReport(**means)  # type: ignore[arg-type]
