"""`penstock policy`: the rules by name, and what they do to recorded traffic."""

import json as json_module
from collections.abc import Sequence
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.document.units import Unit
from cluster.errors import ConfigError
from penstock.cli import options, policy_files, policy_live
from penstock.cli.app import told
from penstock.cli.output import progress, say, write_json, write_table
from penstock.cli.traffic import Limit, TraceFile, Workload, load_traffic
from router.policies.registry import RULES, parameters_of
from router.policies.rule import Rule
from router.policy_file.kind import POLICY
from simulator.comparison import COSTS, Row, compare, ideal_hit_share
from simulator.fifo import FifoSetting
from simulator.scenario import parse_rule

COLUMNS = ["rule", "workers", "cache", "mean TTFT s", "p50", "p99", "hit %", "fetched GB", "busy %"]
UNITS = {"k": 10**3, "M": 10**6, "G": 10**9}
MAX_BYTES_PER_S = 1e15
RATE = Unit(
    suffix="_bytes_per_s",
    noun="bytes or bits a second",
    example="20GB/s, 10Gbit/s or none",
    scales={
        **{f"{symbol}B/s": Decimal(scale) for symbol, scale in UNITS.items()},
        **{f"{symbol}bit/s": Decimal(scale) / 8 for symbol, scale in UNITS.items()},
    },
)

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
    trace: TraceFile = None,
    workload: Workload = None,
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
    link: Annotated[
        str,
        typer.Option(
            "--link", help="Bytes or bits a second between two workers, as 10Gbit/s; none: no way."
        ),
    ] = "20GB/s",
    rate: Annotated[float, typer.Option("--rate", help="Times as fast.", min=0.01)] = 1.0,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, max=100, help="Runs of each, averaged.")
    ] = 1,
    speculate: Annotated[
        bool, typer.Option(help="Tell the rule of prompts that are placed and not computed yet.")
    ] = True,
    limit: Limit = None,
    json: options.Json = False,
) -> None:
    """Replay traffic through placement rules: prefill only, one prompt at a time a worker.

    Example: penstock policy replay --workload bursts --rule priced --rule lmetric --link 10Gbit/s
    """
    settings = _settings(workers, cache, cost, link, speculates=speculate)
    rules = _rules(rule or [], policies or [])
    traces = [
        load_traffic(trace, workload, seed=seed, limit=limit).at_rate(rate) for seed in range(seeds)
    ]
    first = traces[0]
    say(
        f"{first.name}: {len(first.requests)} requests in {first.duration_s:.0f} s,"
        f" an endless cache would hold {100 * ideal_hit_share(first):.1f} % of the tokens"
    )
    with progress() as bar:
        task = bar.add_task("", total=None)
        rows = list(
            compare(
                traces,
                rules,
                settings,
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
    """Keeps rules by the names that rows of the table go by."""
    if not texts and not policies:
        texts = list(RULES)
    of_files = {str(path): POLICY.load(path).policy().rule for path in policies}
    return {text: parse_rule(text) for text in texts} | of_files


def _settings(
    workers: str, cache: str, cost: str, link: str, *, speculates: bool
) -> Sequence[FifoSetting]:
    if cost not in COSTS:
        raise ConfigError(f"'--cost {cost}' is unknown: choose from {', '.join(COSTS)}.")
    return [
        FifoSetting(
            num_workers=_number("--workers", num, most=10_000),
            cache_tokens=_number("--cache", tokens, most=10**12),
            cost=COSTS[cost],
            fetch_bytes_per_s=_bytes_per_s("--link", link),
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


def _bytes_per_s(option: str, text: str) -> float | None:
    if text == "none":
        return None
    try:
        speed = RATE.parse(text.removesuffix("/s") + "/s")
    except ValueError as error:
        raise ConfigError(f"'{option} {text}': {error}") from error
    if not 0 < speed <= MAX_BYTES_PER_S:
        raise ConfigError(f"'{option} {text}': give more than 0 and at most 1000TB/s, or none.")
    return speed


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
