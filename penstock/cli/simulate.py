"""`penstock simulate`: a cluster in virtual time. The real router and schedulers, modelled
engines and links: what latencies, hits and cost would be, with which workers and which faults."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from cluster.errors import ConfigError
from penstock.cli import options
from penstock.cli.local import internal_door, need_secrets, usable_address
from penstock.cli.output import progress, say, write_json, write_table
from penstock.cli.status import fetch_status, reported
from penstock.cli.traffic import Limit, TraceFile, Workload, load_traffic
from router.policy import Policy
from router.policy_file.kind import POLICY
from simulator.faults import TimedFault
from simulator.fitted import fitted
from simulator.plot import figure_file
from simulator.plot import plot as write_plot
from simulator.report import Report, Samples, Spread, Use
from simulator.run import Simulation
from simulator.scenario import (
    MAKES,
    load_setting,
    parse_fault,
    parse_rule,
    sized,
)
from simulator.setting import Setting, Targets
from simulator.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of the table."""

    name: str
    setting: Setting
    policy: Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnRun:
    """Holds what came of a column's run."""

    plan: Column
    report: Report
    samples: Samples


def simulate(
    trace: TraceFile = None,
    workload: Workload = None,
    limit: Limit = None,
    rate: Annotated[float, typer.Option("--rate", help="Times as fast.", min=0.001)] = 1.0,
    workers: Annotated[
        str | None,
        typer.Option("--workers", help="PREFILL+DECODE; with commas for several. Default: 4+4."),
    ] = None,
    make: Annotated[
        str, typer.Option("--make", help=f"Of each worker: {', '.join(MAKES)}.")
    ] = "70b-4gpu",
    cluster: Annotated[
        Path | None,
        typer.Option(
            "--cluster",
            help="YAML with makes, model, link and times (docs/simulator.md). Default: none.",
        ),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            "--like",
            metavar="HOST:PORT",
            help="With what a running cluster's workers report. Default: none.",
        ),
    ] = None,
    secrets_file: options.SecretsFile = None,
    policy: Annotated[
        list[Path] | None,
        typer.Option("--policy", help="A policy's file; repeatable. Default: none."),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option("--rule", help="NAME or 'NAME: {KEY: VALUE}'; repeatable. Default: priced."),
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            "--fault",
            help="crash, freeze, slow, lost_events or partition, as"
            " 'crash: {worker: decode-0, at_s: 5, for_s: 4}'; 'random: {num: 4}'. Repeatable."
            " Default: none.",
        ),
    ] = None,
    ttft: Annotated[
        float | None,
        typer.Option("--ttft", help="Target, seconds. Default: the cluster's, 2.", min=0),
    ] = None,
    itl: Annotated[
        float | None,
        typer.Option("--itl", help="Target, seconds. Default: the cluster's, 0.1.", min=0),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of traffic, faults and rules.")] = 0,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Write figures there, as .png, .svg or .pdf. Default: none."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Simulate a cluster: TTFT, gaps, goodput, cache hits and cost before anything is bought.

    Example: penstock simulate --workers 2+2,2+4 --fault 'crash: {worker: decode-0, at_s: 60}'
    """
    figures = figure_file(plot) if plot else None
    requests = load_traffic(trace, workload, seed=seed, limit=limit).at_rate(rate)
    setting = setting_of(cluster, make)
    if like is not None:
        like = usable_address(like)
        secrets = need_secrets(secrets_file, like)
        setting = fitted(setting, reported(fetch_status(internal_door(like), secrets)))
    base = with_targets(setting, ttft, itl)
    plans = _plans(base, workers, _policies(policy or [], rule or []))
    title = f"{requests.name}: {len(requests.requests)} requests in {requests.duration_s:.0f} s"
    say(f"{title}, {requests.num_prompt_tokens} prompt tokens")
    runs = _run_all(requests, plans, fault or [], seed)
    if figures:
        faults = _faults(fault or [], plans[0].setting, seed, requests)
        samples = {run.plan.name: run.samples for run in runs}
        write_plot(figures, samples, faults, title=title, targets=base.targets)
        say(f"The figures are in {figures}.")
    if json:
        write_json([_run_json(run) for run in runs])
    else:
        write_table(["", *(run.plan.name for run in runs)], _rows(runs))


def setting_of(cluster: Path | None, make: str) -> Setting:
    if cluster is not None:
        return load_setting(cluster)
    if make not in MAKES:
        raise ConfigError(f"'--make {make}' is unknown: choose from {', '.join(MAKES)}.")
    return Setting(num_prefill=4, num_decode=4, prefill=MAKES[make], decode=MAKES[make])


def with_targets(setting: Setting, ttft_s: float | None, itl_s: float | None) -> Setting:
    known = setting.targets
    targets = Targets(
        ttft_s=known.ttft_s if ttft_s is None else ttft_s,
        itl_s=known.itl_s if itl_s is None else itl_s,
    )
    return replace(setting, targets=targets)


def _policies(files: Sequence[Path], rules: Sequence[str]) -> list[Policy]:
    """The default, where none is given."""
    given = [POLICY.load(file).policy() for file in files]
    given += [Policy(name=rule, rule=parse_rule(rule)) for rule in rules]
    return given or [Policy()]


def _plans(base: Setting, workers: str | None, policies: Sequence[Policy]) -> list[Column]:
    """A column each."""
    sizes = (workers or f"{base.num_prefill}+{base.num_decode}").split(",")
    return [
        Column(name=f"{size.strip()} {policy.name}", setting=sized(base, size), policy=policy)
        for size in sizes
        for policy in policies
    ]


def _faults(texts: Sequence[str], setting: Setting, seed: int, trace: Trace) -> list[TimedFault]:
    return [
        fault
        for text in texts
        for fault in parse_fault(text, setting, seed=seed, duration_s=trace.duration_s)
    ]


def _run_all(
    trace: Trace, plans: Sequence[Column], faults: Sequence[str], seed: int
) -> list[ColumnRun]:
    with progress() as bar:
        return [_run(bar, plan, trace, faults, seed) for plan in plans]


def _run(bar: Progress, plan: Column, trace: Trace, faults: Sequence[str], seed: int) -> ColumnRun:
    task = bar.add_task(plan.name, total=len(trace.requests))
    befall = _faults(faults, plan.setting, seed, trace)
    simulation = Simulation(trace, plan.setting, policy=plan.policy, seed=seed, faults=befall)
    report = simulation.run(lambda done: bar.update(task, completed=done))
    return ColumnRun(plan=plan, report=report, samples=simulation.samples())


def _rows(runs: Sequence[ColumnRun]) -> list[list[str]]:
    columns = [_figures(run) for run in runs]
    return [[label, *(column[label] for column in columns)] for label in columns[0]]


def _figures(run: ColumnRun) -> dict[str, str]:
    report, targets = run.report, run.plan.setting.targets
    per_cent = 100 / max(1, report.num_prompt_tokens)
    good = f"good: TTFT <= {targets.ttft_s:g} s, ITL <= {targets.itl_s:g} s"
    return {
        "requests": str(report.num_requests),
        "failed": str(report.num_failed),
        "rejected at admission": str(report.num_rejected),
        "TTFT s, mean p50 p90 p99": _spread(report.ttft, 1.0),
        "ITL ms, mean p50 p90 p99": _spread(report.itl, 1e3),
        good: f"{100 * report.num_good / max(1, report.num_requests):.1f} %",
        "goodput, requests/s": f"{report.goodput:.3f}",
        "output tokens/s": f"{report.num_output_tokens / max(1e-9, report.duration_s):.1f}",
        "hit tokens, % of prompt": f"{report.num_hit_tokens * per_cent:.2f}",
        "  of an endless cache": f"{report.num_ideal_hit_tokens * per_cent:.2f}",
        "  as the router predicted": f"{report.num_predicted_hit_tokens * per_cent:.2f}",
        "prefilled by decode workers": str(report.num_local),
        "moved to another worker": str(report.num_moved),
        "hand-overs recomputed": str(report.num_recomputes),
        "put back for memory": str(report.num_preemptions),
        "KV handed over, GB": f"{report.moved_bytes / 1e9:.1f}",
        "KV fetched, GB": f"{report.fetched_bytes / 1e9:.1f}",
        "prefill busy %": f"{_prefill_busy(run):.0f}",
        "decode batch, mean": _batch(run),
        "prefill KV in use %, mean most": _kv(report.prefill_use),
        "decode KV in use %, mean most": _kv(report.decode_use),
        "duration s": f"{report.duration_s:.1f}",
        "GPU seconds": f"{report.gpu_s:.0f}",
        "cost": f"{report.cost:.2f}",
    }


def _spread(spread: Spread, unit: float) -> str:
    values = (spread.mean_s, spread.p50_s, spread.p90_s, spread.p99_s)
    return " ".join(f"{unit * value:.3g}" for value in values)


def _prefill_busy(run: ColumnRun) -> float:
    """Tells how busy prefill workers were. Of decode workers it would say nothing: they step as
    long as there is one answer."""
    worker_s = run.report.duration_s * run.plan.setting.num_prefill
    return 100 * run.report.prefill_busy_s / worker_s if worker_s else 0.0


def _batch(run: ColumnRun) -> str:
    return f"{run.report.decode_use.batch:.3g} of {run.plan.setting.decode.max_sequences}"


def _kv(use: Use) -> str:
    return f"{100 * use.kv_share:.0f} {100 * use.most_kv_share:.0f}"


def _run_json(run: ColumnRun) -> dict[str, Any]:
    return {
        "run": run.plan.name,
        "policy": run.plan.policy.name,
        "setting": asdict(run.plan.setting),
        **asdict(run.report),
        "goodput": run.report.goodput,
        "hit_share": run.report.hit_share,
    }
