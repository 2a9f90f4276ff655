"""`penstock policy`: the rules by name, and what they do to recorded traffic."""

import json as json_module
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.errors import ConfigError
from penstock.cli import options, policy_files, policy_live
from penstock.cli.app import told
from penstock.cli.output import progress, say, write_json, write_table
from router.policies.registry import RULES, parameters_of
from router.policies.rule import Rule
from router.policy_file.document import load_policy
from simulator.comparison import COSTS, Row, compare, ideal_hit_share
from simulator.fifo import FifoSetting
from simulator.scenario import parse_rule
from simulator.trace import load_trace

SHIPPED_TRACE = Path(__file__).parents[2] / "simulator" / "conversations.jsonl.gz"
COLUMNS = ["rule", "workers", "cache", "mean TTFT s", "p50", "p99", "hit %", "fetched GB", "busy %"]
UNITS = {"k": 10**3, "M": 10**6, "G": 10**9}

policy = typer.Typer(
    help="Routing policies: write, check, replay, apply, and ask them why.",
    add_completion=False,
    no_args_is_help=True,
)
for name, command in {**policy_files.COMMANDS, **policy_live.COMMANDS}.items():
    policy.command(name)(told(command))


@policy.command("list")
@told
def list_rules(json: options.Json = False) -> None:
    """Name every rule with its parameters and their defaults."""
    if json:
        write_json({name: parameters_of(name) for name in RULES})
    else:
        shown = [[name, json_module.dumps(parameters_of(name))] for name in RULES]
        write_table(["rule", "parameters"], shown)


@policy.command()
@told
def replay(
    trace: Annotated[
        Path, typer.Option("--trace", help="Mooncake JSON lines or Azure CSV, .gz or not.")
    ] = SHIPPED_TRACE,
    rule: Annotated[
        list[str] | None,
        typer.Option("--rule", help="NAME or 'NAME: {KEY: VALUE}'; repeatable. Default: all."),
    ] = None,
    policies: Annotated[
        list[Path] | None,
        typer.Option("--policy", help="Its rule is replayed; repeatable. Default: none."),
    ] = None,
    workers: Annotated[str, typer.Option("--workers", help="One or several, with commas.")] = "8",
    cache: Annotated[
        str, typer.Option("--cache", help="Tokens of KV a worker, as 500k or 3M; with commas.")
    ] = "3M",
    cost: Annotated[
        str, typer.Option("--cost", help=f"Prefill coefficients: {', '.join(COSTS)}.")
    ] = "70b-2gpu",
    rate: Annotated[float, typer.Option("--rate", help="Times as fast.", min=0.01)] = 1.0,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, max=100, help="Runs of each, averaged.")
    ] = 1,
    speculate: Annotated[
        bool, typer.Option(help="Tell the rule of prompts that are placed and not computed yet.")
    ] = True,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Only so many requests. Default: all.", min=1)
    ] = None,
    json: options.Json = False,
) -> None:
    """Replay a trace through placement rules: prefill only, one prompt at a time a worker.

    Example: penstock policy replay --rule priced --rule lmetric --workers 8,10
    """
    settings = _settings(workers, cache, cost, speculates=speculate)
    rules = _rules(rule or [], policies or [])
    requests = load_trace(trace, limit=limit)
    say(
        f"{requests.name}: {len(requests.requests)} requests in {requests.duration_s / rate:.0f} s,"
        f" an endless cache would hold {100 * ideal_hit_share(requests):.1f} % of the tokens"
    )
    with progress() as bar:
        task = bar.add_task("", total=None)
        rows = list(
            compare(
                trace,
                rules,
                settings,
                num_seeds=seeds,
                rate=rate,
                limit=limit,
                progress=lambda done, num, what: bar.update(
                    task, completed=done, total=num, description=what
                ),
            )
        )
    if json:
        write_json([_row_json(row) for row in rows])
    else:
        write_table(COLUMNS, list(map(_row_cells, rows)))


def _rules(texts: Sequence[str], policies: Sequence[Path]) -> dict[str, Rule[Any]]:
    """By the names that rows of the table go by."""
    if not texts and not policies:
        texts = list(RULES)
    of_files = {str(path): load_policy(path).policy().rule for path in policies}
    return {text: parse_rule(text) for text in texts} | of_files


def _settings(workers: str, cache: str, cost: str, *, speculates: bool) -> Sequence[FifoSetting]:
    if cost not in COSTS:
        raise ConfigError(f"'--cost {cost}' is unknown: choose from {', '.join(COSTS)}.")
    return [
        FifoSetting(
            num_workers=_number("--workers", num, most=10_000),
            cache_tokens=_number("--cache", tokens, most=10**12),
            cost=COSTS[cost],
            speculates=speculates,
        )
        for tokens in cache.split(",")
        for num in workers.split(",")
    ]


def _number(option: str, text: str, *, most: int) -> int:
    unit = UNITS.get(text[-1:], 1)
    try:
        number = round(float(text[:-1] if unit > 1 else text) * unit)
    except (ValueError, OverflowError):
        number = 0
    if not 1 <= number <= most:
        raise ConfigError(f"'{option} {text}': give a number from 1 to {most}, as 8, 500k or 3M.")
    return number


def _row_cells(row: Row) -> list[str]:
    report = row.report
    return [
        row.rule,
        str(row.setting.num_workers),
        f"{row.setting.cache_tokens / 1e6:g}M",
        f"{report.mean_ttft_s:.2f}",
        f"{report.p50_ttft_s:.2f}",
        f"{report.p99_ttft_s:.1f}",
        f"{100 * report.hit_share:.1f}",
        f"{report.fetched_bytes / 1e9:.0f}",
        f"{100 * report.busy_share:.0f}",
    ]


def _row_json(row: Row) -> dict[str, Any]:
    return {"rule": row.rule, "setting": asdict(row.setting), **asdict(row.report)}
