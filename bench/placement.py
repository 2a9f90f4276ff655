"""The default placement rule beside the best shipped one of each cell: `python -m bench.placement`.

Recorded and adversarial traffic x cache x link x rate on eight workers, in the smallest replay;
with --full in the full simulator (4 + 4 workers, fast links, share of requests within targets),
both where decode workers may compute prompts, which no other rule has them do, and where not.
A rule is best in one measure of one cell: no rule has to be best in all. `--baselines FILE` keeps
what the other rules did, so that a changed default is tried in a minute.
"""

import argparse
import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.placement_cells import CACHES, LINKS, RATES, TRAFFIC, Cell, CellTraffic, cells, rivals
from bench.placement_runs import Runs, replayed, simulated
from bench.sheets import Sheet
from cluster.errors import ConfigError
from penstock.cli.output import progress
from router.policies.registry import DEFAULT, RULES
from router.policies.rule import Rule
from simulator.scenario import parse_rule

FULL_CACHE = 400_000  # tokens a worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What is compared, and how far the default may be off."""

    key: str
    title: str
    bound: float  # of the ratio
    best: Callable[..., Any] = min

    def is_beyond(self, ratio: float) -> bool:
        return ratio > self.bound if self.best is min else ratio < self.bound


IN_REPLAY = (
    Figure(key="mean", title="mean TTFT s", bound=1.05),
    Figure(key="p99", title="p99 s", bound=1.15),
)
IN_FULL = (
    Figure(key="good", title="good share", bound=0.97, best=max),
    Figure(key="always", title="always disaggregated", bound=0.97, best=max),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureVerdict:
    """Of one figure in one cell."""

    cell: tuple[str, ...]
    figure: str
    judged: float
    best: float
    best_rule: str
    ratio: float
    is_beyond: bool
    busy_share: float  # under the rule that is judged


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """A rule, against which others and in what."""

    name: str
    rule: Rule[Any]
    against: Collection[str]  # by name
    figures: Sequence[Figure]
    runs: Runs

    def judge(self, cell: Cell) -> list[FigureVerdict]:
        own = self.runs.figures(cell, self.name, self.rule)
        others = {
            name: self.runs.figures(cell, name, rival)
            for name, rival in rivals(cell, self.against).items()
        }
        return [_verdict(cell, own, others, figure) for figure in self.figures]


def _verdict(
    cell: Cell,
    own: Mapping[str, float],
    others: Mapping[str, Mapping[str, float]],
    figure: Figure,
) -> FigureVerdict:
    best_rule = figure.best(others, key=lambda each: others[each][figure.key])
    judged, best = own[figure.key], others[best_rule][figure.key]
    ratio = judged / best if best else 1.0  # where nobody has one good request, all are alike
    return FigureVerdict(
        cell=cell.names,
        figure=figure.key,
        judged=judged,
        best=best,
        best_rule=best_rule,
        ratio=ratio,
        is_beyond=figure.is_beyond(ratio),
        busy_share=own["busy"],
    )


def sheet(name: str, judged: Sequence[Sequence[FigureVerdict]], figures: Sequence[Figure]) -> Sheet:
    of_figure = [(each.title, "best", "by", "ratio") for each in figures]
    return Sheet(
        title=f"{name} beside the best shipped rule of each cell",
        columns=("traffic", "cache", "link", "rate", "busy %", *sum(of_figure, ())),
        rows=[_row(verdicts) for verdicts in judged],
        num_names=4,
    )


def _row(verdicts: Sequence[FigureVerdict]) -> tuple[str, ...]:
    cells_of = [
        (f"{each.judged:.3g}", f"{each.best:.3g}", each.best_rule, _ratio(each))
        for each in verdicts
    ]
    first = verdicts[0]
    return (*first.cell, f"{100 * first.busy_share:.0f}", *sum(cells_of, ()))


def _ratio(verdict: FigureVerdict) -> str:
    return f"{verdict.ratio:.2f}{' !' if verdict.is_beyond else ''}"


def summary(judged: Sequence[Sequence[FigureVerdict]], figure: Figure, num_shown: int = 5) -> str:
    """The worst cells, and how many are beyond the bound."""
    found = [each for verdicts in judged for each in verdicts if each.figure == figure.key]
    found.sort(key=lambda each: each.ratio, reverse=figure.best is min)
    num_beyond = sum(each.is_beyond for each in found)
    lines = [f"{figure.title}: {num_beyond} of {len(found)} cells beyond {figure.bound:g}; worst:"]
    lines += [
        f"  {each.ratio:.2f}  {' | '.join(each.cell)}  (best: {each.best_rule})"
        for each in found[:num_shown]
    ]
    return "\n".join(lines)


def main() -> int:
    try:
        return _run(_flags())
    except ConfigError as error:
        sys.exit(str(error))


def _run(flags: argparse.Namespace) -> int:
    traffic = dict(TRAFFIC) | {
        path.name: CellTraffic(trace=path, limit=flags.limit, ttft_s=4.0) for path in flags.trace
    }
    kept = {name: each for name, each in traffic.items() if not flags.only or name in flags.only}
    if not kept:
        sys.exit(f"No traffic is called so: choose from {', '.join(traffic)}.")
    grid = list(
        cells(kept, caches=(FULL_CACHE,), links=("20GB/s",), rates=(1.0, 2.0))
        if flags.full
        else cells(kept, caches=CACHES, links=tuple(LINKS), rates=RATES)
    )
    figures, measure = (IN_FULL, simulated) if flags.full else (IN_REPLAY, replayed)
    contest = Contest(
        name=flags.rule,
        rule=parse_rule(flags.rule),
        against=flags.against or RULES,
        figures=figures,
        runs=Runs(measure, flags.seeds, flags.baselines),
    )
    judged = _judged(grid, contest)
    Console(width=None if sys.stdout.isatty() else 220).print(
        sheet(flags.rule, judged, figures).as_rich()
    )
    for figure in figures:
        print(summary(judged, figure))
    if flags.json:
        flags.json.write_text(json.dumps([[asdict(one) for one in each] for each in judged]) + "\n")
    return int(any(one.is_beyond for each in judged for one in each))


def _judged(grid: Sequence[Cell], contest: Contest) -> list[list[FigureVerdict]]:
    judged = []
    with progress() as bar:
        task = bar.add_task("", total=len(grid))
        for cell in grid:
            bar.update(task, description=", ".join(cell.names))
            judged.append(contest.judge(cell))
            contest.runs.save()
            bar.advance(task)
    return judged


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.placement", description=__doc__)
    parser.add_argument("--full", action="store_true", help="in the full simulator")
    parser.add_argument("--only", action="append", metavar="NAME", help="this traffic; repeatable")
    parser.add_argument("--rule", default=DEFAULT, help="what is judged: NAME: {KEY: VALUE}")
    parser.add_argument(
        "--against", action="append", choices=RULES, help="only these rules; repeatable"
    )
    parser.add_argument("--trace", type=Path, action="append", default=[], help="recorded traffic")
    parser.add_argument("--limit", type=int, default=2000, help="requests of each of these")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each, averaged")
    parser.add_argument("--baselines", type=Path, help="keeps what the other rules did")
    parser.add_argument("--json", type=Path, help="write the verdicts there")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
