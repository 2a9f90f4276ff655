"""One rule in one cell: in the smallest replay, and in the full simulator. What was measured of
other rules than the default is kept in a file, for it stays what it is when the default changes.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.placement_cells import Cell, digest_of, may_fetch, trace_of
from cluster.types import WorkerId
from router.policies.priced import Priced
from router.policies.rule import Rule
from router.policy import Disaggregate, Policy
from router.policy_settings import ServiceClass
from simulator.comparison import COSTS
from simulator.faults import Slow
from simulator.fifo import FifoReplay, FifoSetting
from simulator.report import Report
from simulator.run import simulate
from simulator.setting import PairLink, Setting, Targets, WorkerMake

Figures = dict[str, float]
Measure = Callable[[Cell, Rule[Any], int], Figures]

NUM_WORKERS = 8
ITL_S = 0.2


def replayed(cell: Cell, rule: Rule[Any], seed: int) -> Figures:
    makes = cell.makes
    setting = FifoSetting(
        num_workers=NUM_WORKERS,
        cache_tokens=cell.cache_tokens,
        cost=COSTS["70b-2gpu"],
        fetch_bytes_per_s=cell.bytes_per_s,
        slowness=makes.slowness,
        is_slowness_known=makes.is_slowness_known,
        noise=makes.noise,
    )
    report = FifoReplay(trace_of(makes, seed).at_rate(cell.rate), rule, setting, seed=seed).run()
    return {"mean": report.mean_ttft_s, "p99": report.p99_ttft_s, "busy": report.busy_share}


def simulated(cell: Cell, rule: Rule[Any], seed: int) -> Figures:
    """`good`: where decode workers compute prompts, too, if the rule may choose that; `always`:
    where they do not. The other rules never do."""
    report = _simulated(cell, rule, seed, Disaggregate.AUTO)
    always = (
        _simulated(cell, rule, seed, Disaggregate.ALWAYS) if isinstance(rule, Priced) else report
    )
    busy_s = (report.prefill_busy_s + report.decode_busy_s) / NUM_WORKERS
    return {
        "good": report.num_good / report.num_requests,
        "always": always.num_good / always.num_requests,
        "busy": busy_s / report.duration_s,
    }


def _simulated(cell: Cell, rule: Rule[Any], seed: int, disaggregate: Disaggregate) -> Report:
    """Half of the workers prefill; links are there in every cell. A worker that is slow knows it:
    there are no others in the simulator."""
    makes, half = cell.makes, NUM_WORKERS // 2
    make = WorkerMake(cache_tokens=cell.cache_tokens)
    setting = Setting(
        num_prefill=half,
        num_decode=half,
        prefill=make,
        decode=make,
        link=PairLink(bytes_per_s=cell.bytes_per_s or 0.0),
        targets=Targets(ttft_s=makes.ttft_s, itl_s=ITL_S),
        noise=makes.noise,
    )
    promised = ServiceClass(name="default", ttft_s=makes.ttft_s, itl_s=ITL_S)
    slow = Slow(worker=WorkerId("prefill-0"), at_s=0.0, factor=makes.slowness)
    return simulate(
        trace_of(makes, seed).at_rate(cell.rate),
        setting,
        policy=Policy(rule=rule, classes=(promised,), disaggregate=disaggregate),
        seed=seed,
        faults=[slow] if makes.slowness != 1.0 else [],
    )


@dataclass(slots=True, eq=False)
class Runs:
    """Measures each rule once in a cell; one that may not fetch, once for all links."""

    measure: Measure
    num_seeds: int
    file: Path | None = None
    _known: dict[str, Figures] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.file is not None and self.file.exists():
            self._known = json.loads(self.file.read_text(encoding="utf-8"))

    def figures(self, cell: Cell, name: str, rule: Rule[Any]) -> Figures:
        """Means over the seeds."""
        found = [self._once(cell, name, rule, seed) for seed in range(self.num_seeds)]
        return {key: fmean(each[key] for each in found) for key in found[0]}

    def save(self) -> None:
        if self.file is not None:
            lasting = {key: value for key, value in self._known.items() if key[0] != _CHANGES}
            written = self.file.with_name(self.file.name + ".new")
            written.write_text(json.dumps(lasting, indent=0), encoding="utf-8")
            written.replace(self.file)

    def _once(self, cell: Cell, name: str, rule: Rule[Any], seed: int) -> Figures:
        link = cell.link if may_fetch(rule) or self.measure is simulated else "any"
        parts = (self.measure.__name__, name, cell.traffic, cell.cache_tokens, link, cell.rate)
        mark = _CHANGES if isinstance(rule, Priced) else ""
        key = f"{mark}{parts} {seed} {digest_of(cell.makes, seed)}"
        if key not in self._known:
            self._known[key] = self.measure(cell, rule, seed)
        return self._known[key]


_CHANGES = "*"  # what of the default's own code comes of: measured anew in each process
