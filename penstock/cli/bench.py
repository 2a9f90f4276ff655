"""`penstock bench`: forwards to the load generator of the source tree."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from penstock.cli.exit_codes import ExitCode
from penstock.cli.output import fail

ROOT = Path(__file__).resolve().parents[2]


def bench(
    arguments: Annotated[list[str] | None, typer.Argument(help="See --help of the tool.")] = None,
) -> None:
    """Measure a cluster under load. Example: penstock bench --requests 200 --rate 5"""
    if not (ROOT / "bench" / "serving.py").exists():
        fail("The benchmark comes with the source tree, not with the package.", ExitCode.USAGE)
    command = [sys.executable, "-m", "bench.serving", *(arguments or [])]
    raise typer.Exit(subprocess.run(command, cwd=ROOT).returncode)
