"""Says how many workers a recorded trace needs, and whether prefill workers are worth having:
rehearsed to know where to look, simulated to know. Pure.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from deploy.planner.direction import Counts
from deploy.planner.settings import Bounds
from deploy.planner.sizing import Sizing
from router.learned.reuse import SIZES, Reuse
from router.policy import Policy
from simulator.rehearsal import Come
from simulator.report import Report
from simulator.run import simulate
from simulator.setting import Setting
from simulator.trace import Trace

_NUM_REHEARSED = 4000  # requests: enough to know where to look
_MOST_ALONE = 1.5  # times the GPUs of the best: so far without prefill workers is looked
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedCounts:
    counts: Counts
    num_gpus: int
    report: Report
    suffices: bool

    @property
    def good_share(self) -> float:
        return self.report.num_good / self.report.num_requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    candidates: tuple[TriedCounts, ...]  # within the bounds, by what they cost
    choice: TriedCounts | None  # None: the bounds leave too few workers, or no number would do
    alone: TriedCounts | None  # the fewest without prefill workers that suffice
    ample: TriedCounts  # whatever the bounds: what no number of workers would better by much
    sentences: tuple[str, ...]


@dataclass(slots=True, eq=False, kw_only=True)
class Planning:
    """One search. Every candidate is simulated once."""

    trace: Trace
    setting: Setting
    policy: Policy
    bounds: Bounds
    goal: float
    seed: int = 0
    progress: Progress = lambda text: None
    num_splits: int = 3  # of as many workers, the best as rehearsed, are simulated
    looks_alone: bool = True  # also without prefill workers, where these are more
    _reports: dict[Counts, Report] = field(default_factory=dict)

    def run(self) -> Plan:
        seen = comes(self.trace, self.setting)[:_NUM_REHEARSED]
        sizing = Sizing(seen, self.setting, self.bounds, self.goal, float(SIZES[-1]))
        most = sizing.most
        rehearsed = sizing.cheapest(sizing.bounded(1, 1), 1.0)
        levels = sizing.by_gpus(rehearsed)
        start = sizing.num_gpus(rehearsed)
        for each in (most, sizing.ample):
            self._report(each)
        best = self._up(sizing, levels, start) or most
        best = self._down(sizing, levels, sizing.num_gpus(best)) or best
        if self.looks_alone:
            self._alone(sizing, levels, sizing.num_gpus(best))
        return self._plan(sizing)

    def _up(self, sizing: Sizing, levels: dict[float, list[Counts]], start: float) -> Counts | None:
        """The first level that suffices: by steps that double, and halves of the last of them."""
        sizes = [levels[num] for num in sorted(levels) if num >= start]
        too_few, enough, best = -1, 0, None
        while too_few < len(sizes) - 1 and (best := self._best(sizing, sizes[enough])) is None:
            too_few, enough = enough, min(2 * enough + 1, len(sizes) - 1)
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            if (found := self._best(sizing, sizes[middle])) is None:
                too_few = middle
            else:
                enough, best = middle, found
        return best

    def _down(
        self, sizing: Sizing, levels: dict[float, list[Counts]], start: float
    ) -> Counts | None:
        found = None
        for num in sorted((num for num in levels if num < start), reverse=True):
            best = self._best(sizing, levels[num])
            if best is None:
                break
            found = best
        return found

    def _alone(self, sizing: Sizing, levels: dict[float, list[Counts]], best: float) -> None:
        """Tries counts without prefill workers, from as many GPUs on."""
        for num in sorted(num for num in levels if best <= num <= _MOST_ALONE * best):
            alone = [counts for counts in levels[num] if not counts.prefill]
            if alone and self._best(sizing, alone) is not None:
                return

    def _best(self, sizing: Sizing, sizes: Iterable[Counts]) -> Counts | None:
        """Gives, of those that suffice, the one with the most good answers."""
        likely = sorted(sizes, key=sizing.num_good, reverse=True)[: self.num_splits]
        enough = [counts for counts in likely if self._suffices(sizing, self._report(counts))]
        return max(enough, key=lambda counts: self._report(counts).num_good, default=None)

    def _suffices(self, sizing: Sizing, report: Report) -> bool:
        wanted = max(1.0, self.goal * self._report(sizing.ample).num_good)
        return report.num_good >= wanted

    def _report(self, counts: Counts) -> Report:
        if counts not in self._reports:
            self.progress(str(counts))
            setting = replace(self.setting, num_prefill=counts.prefill, num_decode=counts.decode)
            report = simulate(self.trace, setting, policy=self.policy, seed=self.seed)
            self._reports[counts] = report
        return self._reports[counts]

    def _plan(self, sizing: Sizing) -> Plan:
        candidates = [
            self._candidate(sizing, counts)
            for counts in self._reports
            if counts == sizing.bounded(*counts)
        ]
        candidates.sort(key=lambda each: (each.num_gpus, -each.report.num_good))
        enough = [each for each in candidates if each.suffices]
        choice = enough[0] if enough else None
        alone = next((each for each in enough if not each.counts.prefill), None)
        ample = self._candidate(sizing, sizing.ample)
        return Plan(
            candidates=tuple(candidates),
            choice=choice,
            alone=alone,
            ample=ample,
            sentences=tuple(_sentences(choice, alone, ample, self.goal)),
        )

    def _candidate(self, sizing: Sizing, counts: Counts) -> TriedCounts:
        report = self._report(counts)
        return TriedCounts(
            counts=counts,
            num_gpus=round(sizing.num_gpus(counts)),
            report=report,
            suffices=self._suffices(sizing, report),
        )


def comes(trace: Trace, setting: Setting) -> list[Come]:
    """A trace as what came, as if an endless cache held whatever was seen before."""
    targets, reuse = setting.targets, Reuse()
    found: list[Come] = []
    for each in trace.requests:
        grains = each.grains[: each.num_prompt_tokens // trace.grain]
        num_reusable = reuse.of(grains, trace.grain)
        num_new = max(1, each.num_prompt_tokens - num_reusable[-1])
        found.append(
            Come(
                each.arrival_s,
                each.num_prompt_tokens,
                num_new,
                each.num_output_tokens,
                targets.ttft_s,
                targets.itl_s,
                num_reusable,
            )
        )
    return found


def _sentences(
    choice: TriedCounts | None, alone: TriedCounts | None, ample: TriedCounts, goal: float
) -> Iterable[str]:
    most = f"{100 * ample.good_share:.1f} % of the requests"
    yield f"{ample.counts} would serve {most} within the targets; {goal:.0%} of that is the goal."
    if choice is None:
        yield "No size within the bounds reaches it."
        return
    yield f"{choice.counts} is the cheapest that reaches it: {choice.num_gpus} GPUs."
    if not choice.counts.prefill:
        yield "Do not disaggregate: prefill workers would make it no cheaper."
    elif alone is None:
        yield f"Disaggregate: without prefill workers {_MOST_ALONE:g} times the GPUs do not do."
    elif alone.num_gpus > choice.num_gpus:
        yield f"Disaggregate: without prefill workers it takes {alone.num_gpus} GPUs."
    else:
        yield (
            f"It is no matter of cost: {alone.counts} reaches it, too, with"
            f" {1e3 * alone.report.itl.p99_s:.0f} ms between tokens at the worst (p99) instead of"
            f" {1e3 * choice.report.itl.p99_s:.0f}."
        )
