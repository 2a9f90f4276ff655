"""Finds what is replayed or simulated: recorded traffic by file, invented traffic by name."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cluster.errors import ConfigError
from simulator.scenario import WORKLOADS, parse_workload
from simulator.trace import Trace, load_trace

SHIPPED_TRACE = Path(__file__).parents[2] / "simulator" / "conversations.jsonl.gz"
_INVENTED = (
    f"Instead of a trace: {', '.join(WORKLOADS)}; as NAME or 'NAME: {{KEY: VALUE}}'. Default: none."
)

TraceFile = Annotated[
    Path | None,
    typer.Option(
        "--trace", help="Mooncake JSON lines or Azure CSV, .gz or not. Default: a shipped one."
    ),
]
Workload = Annotated[str | None, typer.Option("--workload", help=_INVENTED)]
Limit = Annotated[
    int | None, typer.Option("--limit", help="Only so many requests. Default: all.", min=1)
]


def load_traffic(
    trace: Path | None, workload: str | None, *, seed: int, limit: int | None
) -> Trace:
    """Raises ConfigError where both are given, or what is given is wrong."""
    if workload is None:
        return load_trace(trace or SHIPPED_TRACE, seed=seed, limit=limit)
    if trace is not None:
        raise ConfigError("Give '--trace' or '--workload', not both.")
    invented = parse_workload(workload, seed=seed)
    return replace(invented, requests=invented.requests[:limit])
