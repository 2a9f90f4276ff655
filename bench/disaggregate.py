"""Whether `disaggregate: auto` is as good as the better of always and never:
`python -m bench.disaggregate [--trace PATH ...]`.

Eight workers in every split of prefill and decode, simulated; each way gets the same workers, and
never leaves those that prefill idle. Without `--rate` a trace is replayed so fast that its work,
as a simple account has it, keeps eight workers busy for the share `--busy` of their time.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

from rich.console import Console

from bench.sheets import Sheet, number
from cluster.errors import ConfigError
from penstock.cli.traffic import SHIPPED_TRACE
from router.policy import Disaggregate, Policy
from router.policy_settings import ServiceClass
from simulator.report import Report
from simulator.run import simulate
from simulator.setting import Setting
from simulator.trace import Trace, load_trace

NUM_WORKERS = 8
MOST = 1.05  # times the better of the two
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeMeans:
    """One mode in one split: the means over the seeds."""

    trace: str
    num_prefill: int
    num_decode: int
    mode: str
    ttft_s: float
    ttft_p99_s: float
    itl_s: float
    goodput: float
    local_share: float  # of requests, computed by the decode worker
    prefill_busy: float
    decode_busy: float

    @property
    def split(self) -> str:
        return f"{self.num_prefill}+{self.num_decode}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """All modes in one split."""

    ways: tuple[ModeMeans, ...]  # auto first

    @property
    def ttft_ratio(self) -> float:
        """Of auto to the better of the others, above 1 where auto is worse."""
        return self.ways[0].ttft_s / min(way.ttft_s for way in self.ways[1:])

    @property
    def goodput_ratio(self) -> float:
        """The other way round, so that above 1 is worse here, too."""
        best = max(way.goodput for way in self.ways[1:])
        return best / self.ways[0].goodput if self.ways[0].goodput else float(best > 0.0) + 1.0

    @property
    def worse(self) -> float:
        return max(self.ttft_ratio, self.goodput_ratio)


def rate_for(trace: Trace, setting: Setting, busy: float) -> float:
    """Times as fast. Prompts cost what an endless cache does not hold; a token of an answer its
    part of a step at which the batch is just within the target."""
    make, itl_s = setting.prefill, setting.targets.itl_s
    new_share = 1.0 - trace.ideal_hit_tokens() / trace.num_prompt_tokens
    decode = setting.decode.decode_cost
    work_s = 0.0
    for request in trace.requests:
        num_prompt = request.num_prompt_tokens
        num_new = max(1, round(new_share * num_prompt))
        work_s += make.prefill_cost.seconds(num_new, num_prompt)
        each_s = decode.d1 * num_prompt + decode.d2
        work_s += request.num_output_tokens * each_s * itl_s / (itl_s - decode.d0)
    return busy * setting.num_workers * trace.duration_s / work_s


def cells(
    path: Path,
    splits: Sequence[int],
    *,
    num_seeds: int,
    limit: int,
    rate: float | None,
    busy: float,
    progress: Progress,
) -> Iterator[Split]:
    """`splits`: how many prefill each."""
    traces = [load_trace(path, seed=seed, limit=limit) for seed in range(num_seeds)]
    base = Setting(num_prefill=0, num_decode=NUM_WORKERS)
    factor = rate_for(traces[0], base, busy) if rate is None else rate
    traces = [trace.at_rate(factor) for trace in traces]
    progress(f"{path.name}: {factor:.2f} times as fast")
    for num in splits:
        setting = replace(base, num_prefill=num, num_decode=NUM_WORKERS - num)
        modes = list(Disaggregate) if num else [Disaggregate.AUTO, Disaggregate.NEVER]
        ways = []
        for mode in modes:
            progress(f"{path.name}, {num}+{NUM_WORKERS - num}, {mode}")
            ways.append(_way(traces, setting, mode))
        yield Split(ways=tuple(ways))


def _way(traces: Sequence[Trace], setting: Setting, mode: Disaggregate) -> ModeMeans:
    targets = setting.targets
    promised = ServiceClass(name="default", ttft_s=targets.ttft_s, itl_s=targets.itl_s)
    policy = Policy(classes=(promised,), disaggregate=mode)
    reports = [
        simulate(trace, setting, policy=policy, seed=seed) for seed, trace in enumerate(traces)
    ]

    def mean(figure: Callable[[Report], float]) -> float:
        return fmean(map(figure, reports))

    return ModeMeans(
        trace=traces[0].name,
        num_prefill=setting.num_prefill,
        num_decode=setting.num_decode,
        mode=str(mode),
        ttft_s=mean(lambda report: report.ttft.mean_s),
        ttft_p99_s=mean(lambda report: report.ttft.p99_s),
        itl_s=mean(lambda report: report.itl.mean_s),
        goodput=mean(lambda report: report.goodput),
        local_share=mean(lambda report: report.num_local / report.num_requests),
        prefill_busy=mean(
            lambda report: report.prefill_busy_s / report.duration_s / max(1, setting.num_prefill)
        ),
        decode_busy=mean(
            lambda report: report.decode_busy_s / report.duration_s / setting.num_decode
        ),
    )


def sheet(found: Sequence[Split]) -> Sheet:
    columns = ("trace", "P+D", "mode", "TTFT s", "p99", "ITL ms", "good/s", "local %", "busy P D")
    rows = [_row(cell, way) for cell in found for way in cell.ways]
    return Sheet(
        title="Whether to disaggregate",
        columns=(*columns, "TTFT / better", "better / good"),
        rows=rows,
        num_names=3,
    )


def _row(cell: Split, way: ModeMeans) -> tuple[str, ...]:
    is_auto = way is cell.ways[0]
    return (
        way.trace,
        way.split,
        way.mode,
        number(way.ttft_s),
        number(way.ttft_p99_s, 1),
        number(1e3 * way.itl_s, 1),
        number(way.goodput),
        number(100 * way.local_share, 0),
        f"{100 * way.prefill_busy:.0f} {100 * way.decode_busy:.0f}",
        number(cell.ttft_ratio if is_auto else None, 3),
        number(cell.goodput_ratio if is_auto else None, 3),
    )


def _verdict(found: Sequence[Split]) -> str:
    worst = max(found, key=lambda cell: cell.worse)
    auto, num_over = worst.ways[0], sum(cell.worse > MOST for cell in found)
    return (
        f"The worst of {len(found)}: {auto.trace}, {auto.split}, {worst.worse:.3f} times the"
        f" better; {num_over} above {MOST}."
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.disaggregate", description=__doc__)
    parser.add_argument("--trace", type=Path, action="append", help="repeatable; default: shipped")
    parser.add_argument("--limit", type=int, default=2000, help="requests of each")
    parser.add_argument("--rate", type=float, help="times as fast; default: by --busy")
    parser.add_argument("--busy", type=float, default=0.7, help="of all workers, at best")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--prefill", default="0,1,2,3,4,5,6,7", help="prefill workers, of eight")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--markdown", action="store_true")
    try:
        return _run(parser.parse_args())
    except ConfigError as error:
        sys.exit(str(error))


def _run(flags: argparse.Namespace) -> int:
    found = [
        cell
        for path in flags.trace or [SHIPPED_TRACE]
        for cell in cells(
            path,
            [int(num) for num in flags.prefill.split(",")],
            num_seeds=flags.seeds,
            limit=flags.limit,
            rate=flags.rate,
            busy=flags.busy,
            progress=lambda text: print(text, file=sys.stderr, flush=True),
        )
    ]
    if flags.markdown:
        print(sheet(found).as_markdown())
    else:
        Console(width=120).print(sheet(found).as_rich())
    print(_verdict(found))
    if flags.json:
        flags.json.write_text(json.dumps([asdict(cell) for cell in found], indent=1) + "\n")
    return 0 if all(cell.worse <= MOST for cell in found) else 1


if __name__ == "__main__":
    sys.exit(main())
