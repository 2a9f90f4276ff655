"""Many rules on one trace in several settings, each over several seeds: the rows of a table."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from cluster.types import PrefillCost
from router.policies.rule import Rule
from simulator.fifo import FifoReplay, FifoReport, FifoSetting
from simulator.trace import Trace, load_trace

# Published fits of a 70-billion model, as in Preble's code (seconds and tokens).
COSTS = {
    "70b-2gpu": PrefillCost(c0=28.93e-3, c1=0.18223e-3, c2=4.00e-6, c3=2.55e-9),
    "70b-4gpu": PrefillCost(c0=18.67e-3, c1=0.07988e-3, c2=2.69e-6, c3=7.44e-10),
}
# (done, all, what runs): one step a seed of a rule in a setting
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    rule: str
    setting: FifoSetting
    report: FifoReport  # the mean over the seeds


def compare(
    path: Path,
    rules: Mapping[str, Rule[Any]],
    settings: Sequence[FifoSetting],
    *,
    num_seeds: int,
    rate: float = 1.0,
    limit: int | None = None,
    progress: Progress = lambda done, num, what: None,
) -> Iterator[Row]:
    """A row at a time, in the order of the rules. A seed spreads the arrivals, too.

    Raises ConfigError where the trace cannot be read.
    """
    seeds = range(num_seeds)
    traces = [load_trace(path, seed=seed, limit=limit).at_rate(rate) for seed in seeds]
    num, done = len(rules) * len(settings) * num_seeds, 0
    for name, rule in rules.items():
        for setting in settings:
            reports = []
            for seed, trace in zip(seeds, traces, strict=True):
                progress(done, num, f"{name}, {setting.num_workers} workers")
                reports.append(FifoReplay(trace, rule, setting, seed=seed).run())
                done += 1
            yield Row(rule=name, setting=setting, report=_mean(reports))
    progress(num, num, "done")


def ideal_hit_share(trace: Trace) -> float:
    """Of an endless cache shared by all."""
    return trace.ideal_hit_tokens() / trace.num_prompt_tokens


def _mean(reports: Sequence[FifoReport]) -> FifoReport:
    means = {
        field.name: fmean(getattr(report, field.name) for report in reports)
        for field in fields(FifoReport)
    }
    for count in ("num_requests", "fetched_bytes"):
        means[count] = round(means[count])
    return FifoReport(**means)  # type: ignore[arg-type]
