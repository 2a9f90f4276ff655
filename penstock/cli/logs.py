"""`penstock logs`: what the processes of a cluster wrote, also after its end."""

import os
import time
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from deploy.log_dir import is_written, log_dirs
from penstock.cli import options
from penstock.cli.exit_codes import ExitCode
from penstock.cli.local import find_address, need_note
from penstock.cli.log_lines import Line, LogFile, in_order, processes
from penstock.cli.notes import running
from penstock.cli.output import fail, say, write

INTERVAL_S = 0.2  # between two looks


def default_log_root() -> Path:
    """In the user's state directory. Raises OSError where there is none."""
    if state := os.environ.get("XDG_STATE_HOME"):
        return Path(state) / "penstock" / "logs"
    if home := os.environ.get("HOME"):
        return Path(home) / ".local" / "state" / "penstock" / "logs"
    raise FileNotFoundError("neither XDG_STATE_HOME nor HOME is set")


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
    log_dir: Annotated[
        Path | None,
        typer.Option(
            "--log-dir",
            metavar="DIR",
            help="Of a cluster that was served with it. Default: the user's state directory.",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Show the logs of the cluster that runs, else of the one that ran last.

    Example: penstock logs router -f
    """
    folder = _folder(address, log_dir)
    known = processes(folder)
    if name is not None and name not in known:
        said = ", ".join(known) or "none"
        fail(f"There is no log of '{name}' in {folder}: choose from {said}.", ExitCode.USAGE)
    with ExitStack() as opened:
        read = [name] if name else known
        files = [opened.enter_context(LogFile(folder, each)) for each in read]
        for line in deque(in_order(files), maxlen=lines or None):
            _show(line, name, json)
        is_running = follow
        while is_running:
            is_running = is_written(folder)
            time.sleep(INTERVAL_S)
            for line in in_order(files):
                _show(line, name, json)


def _show(line: Line, name: str | None, json: bool) -> None:
    write((line.as_json() if json else line.told(with_process=name is None)) + "\n")


def _folder(address: str | None, root: Path | None) -> Path:
    """Ends the command where there is nothing to read."""
    if root is None and (address or running()):
        return Path(need_note(find_address(address), "give the --log-dir that it had").log_dir)
    try:
        root = root or default_log_root()
    except OSError as error:
        fail(f"There are no logs: {error}; give --log-dir.", ExitCode.USAGE)
    kept = log_dirs(root)
    if not kept:
        fail(
            f"There are no logs of a cluster in {root}: start one with 'penstock serve'.",
            ExitCode.USAGE,
        )
    if not is_written(kept[-1]):
        say(f"No cluster writes in {root}: this is the last one's, in {kept[-1]}.")
    return kept[-1]
