"""`penstock logs`: what the processes of a cluster wrote, also after its end."""

import time
from collections import deque
from typing import Annotated

import typer

from penstock.cli import options
from penstock.cli.exit_codes import ExitCode
from penstock.cli.log_lines import LogLine, Logs
from penstock.cli.log_source import opened_logs
from penstock.cli.output import fail, kept_stdout


def logs(
    name: Annotated[
        str | None, typer.Argument(help="Of this process only: router, decode-0, ... or serve.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what comes, until the cluster ends.")
    ] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="Only so many of the last; 0: all.")
    ] = 100,
    address: options.Address = None,
    log_dir: options.LogDir = None,
    cluster: options.Cluster = None,
    ray: options.KnownRay = None,
    json: options.Json = False,
) -> None:
    """Show the logs of the cluster that runs, else of the one that ran last.

    Those of a cluster on many machines come through Ray, which also has what a process wrote that
    is gone, or a cluster that was taken down (--cluster).

    Example: penstock logs router -f
    """
    with (
        kept_stdout() as show,
        opened_logs(address=address, log_dir=log_dir, cluster=cluster, ray=ray) as source,
    ):
        known = source.processes()
        if not known:
            fail(f"There are no logs {source.where}.", ExitCode.USAGE)
        if name is not None and name not in known:
            said = ", ".join(known)
            fail(f"There is no log of '{name}' {source.where}: choose from {said}.", ExitCode.USAGE)
        read = Logs(source.pieces, process=name or "", num_lines=lines)
        for line in deque(read.lines(), maxlen=lines or None):
            show(_text(line, name, json))
        is_running = follow
        while is_running:
            is_running = source.is_written()
            time.sleep(source.interval_s)
            for line in read.lines():
                show(_text(line, name, json))


def _text(line: LogLine, name: str | None, json: bool) -> str:
    return (line.as_json() if json else line.told(with_process=name is None)) + "\n"
