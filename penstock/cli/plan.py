"""`penstock plan`: how many workers recorded traffic needs for its targets, and whether some of
them should do nothing but prefill."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.errors import ConfigError
from deploy.planner.plan import Plan, Planning, TriedCounts
from deploy.planner.settings import MAX_WORKERS, Bounds
from penstock.cli import options
from penstock.cli.output import progress, say, write, write_json, write_table
from penstock.cli.simulate import setting_of, with_targets
from penstock.cli.traffic import Limit, TraceFile, Workload, load_traffic
from router.policy import Policy
from router.policy_file.kind import POLICY
from router.policy_settings import ServiceClass
from simulator.scenario import MAKES
from simulator.setting import Setting, Targets
from simulator.speeds import load_speeds

COLUMNS = ["prefill+decode", "GPUs", "good/s", "good %", "TTFT p99 s", "ITL ms", "p99"]
COLUMNS += ["KV %", "reaches the goal"]


def plan(
    trace: TraceFile = None,
    workload: Workload = None,
    limit: Limit = None,
    rate: Annotated[float, typer.Option("--rate", help="Times as fast.", min=0.001)] = 1.0,
    speeds: Annotated[
        Path | None,
        typer.Option(
            "--speeds",
            metavar="FILE",
            help="Of the workers: what `penstock status --json` wrote. Default: --make.",
        ),
    ] = None,
    make: Annotated[
        str, typer.Option("--make", help=f"Of each worker: {', '.join(MAKES)}.")
    ] = "70b-4gpu",
    policy: Annotated[
        Path | None,
        typer.Option("--policy", help="Targets are its first class's. Default: none."),
    ] = None,
    ttft: Annotated[
        float | None, typer.Option("--ttft", help="Target, seconds. Default: 2.", min=0.001)
    ] = None,
    itl: Annotated[
        float | None, typer.Option("--itl", help="Target, seconds. Default: 0.1.", min=0.001)
    ] = None,
    goal: Annotated[
        float,
        typer.Option(
            "--goal", help="Of the requests that any number would serve in time.", min=0.01, max=1
        ),
    ] = 0.95,
    most: Annotated[
        int, typer.Option("--most", help="Workers of a role.", min=1, max=MAX_WORKERS)
    ] = 32,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of traffic and rules.")] = 0,
    json: options.Json = False,
) -> None:
    """Say how many prefill and decode workers recorded traffic needs, and why.

    Exits 1 when no number of them reaches the goal.

    Example: penstock plan --trace traffic.jsonl.gz --ttft 1 --itl 0.05
    """
    requests = load_traffic(trace, workload, seed=seed, limit=limit).at_rate(rate)
    promised, setting = _promised(policy, _setting(speeds, make), ttft, itl)
    say(f"{requests.name}: {len(requests.requests)} requests in {requests.duration_s:.0f} s")
    with progress() as bar:
        task = bar.add_task("sizes", total=None)
        found = Planning(
            trace=requests,
            setting=setting,
            policy=promised,
            bounds=Bounds(most_prefill=most, most_decode=most),
            goal=goal,
            seed=seed,
            progress=lambda text: bar.update(task, description=f"simulating {text}"),
        ).run()
    if json:
        write_json(_plan_json(found))
    else:
        write_table(COLUMNS, [_row(each) for each in found.candidates])
        write("".join(f"{sentence}\n" for sentence in found.sentences))
    if found.choice is None:
        raise typer.Exit(1)


def _setting(speeds: Path | None, make: str) -> Setting:
    setting = setting_of(None, make)
    if speeds is None:
        return setting
    given = load_speeds(speeds)
    return replace(
        setting,
        prefill=given.prefill,
        decode=given.decode,
        model=given.model,
        link=given.link,
    )


def _promised(
    file: Path | None, setting: Setting, ttft_s: float | None, itl_s: float | None
) -> tuple[Policy, Setting]:
    """The policy, and a setting that judges by the targets of its first class."""
    if file is None:
        setting = with_targets(setting, ttft_s, itl_s)
        targets = setting.targets
        promised = ServiceClass(name="default", ttft_s=targets.ttft_s, itl_s=targets.itl_s)
        return Policy(classes=(promised,)), setting
    if ttft_s is not None or itl_s is not None:
        raise ConfigError("Give '--policy' or the targets '--ttft' and '--itl', not both.")
    policy = POLICY.load(file).policy()
    first = policy.classes[0]
    return policy, replace(setting, targets=Targets(ttft_s=first.ttft_s, itl_s=first.itl_s))


def _row(candidate: TriedCounts) -> list[str]:
    report, counts = candidate.report, candidate.counts
    return [
        str(counts),
        str(candidate.num_gpus),
        f"{report.goodput:.3f}",
        f"{100 * candidate.good_share:.1f}",
        f"{report.ttft.p99_s:.2f}",
        f"{1e3 * report.itl.mean_s:.1f}",
        f"{1e3 * report.itl.p99_s:.1f}",
        f"{100 * report.decode_use.kv_share:.0f}",
        "yes" if candidate.suffices else "no",
    ]


def _plan_json(found: Plan) -> dict[str, Any]:
    return {
        "choice": _candidate_json(found.choice) if found.choice else None,
        "without_prefill": _candidate_json(found.alone) if found.alone else None,
        "sentences": list(found.sentences),
        "candidates": [_candidate_json(each) for each in found.candidates],
    }


def _candidate_json(candidate: TriedCounts) -> dict[str, Any]:
    report = candidate.report
    return {
        "prefill": candidate.counts.prefill,
        "decode": candidate.counts.decode,
        "gpus": candidate.num_gpus,
        "suffices": candidate.suffices,
        "goodput": report.goodput,
        "good_share": candidate.good_share,
        "ttft_p99_s": report.ttft.p99_s,
        "itl_mean_s": report.itl.mean_s,
        "itl_p99_s": report.itl.p99_s,
        "decode_kv_share": report.decode_use.kv_share,
    }
