"""Data goes to stdout, everything else to stderr; `--json` makes the data one JSON value."""

import json
import sys
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from penstock.cli.exit_codes import ExitCode

err = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str, *, style: str = "dim") -> None:
    """Progress, for people."""
    err.print(text, style=style, markup=False)


def progress() -> Progress:
    """A bar of what is done and how long it took; none where nobody looks."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )


def complain(text: str) -> None:
    err.print(f"error: {text}", style="red", markup=False)


def fail(text: str, code: ExitCode) -> NoReturn:
    complain(text)
    raise typer.Exit(code)


def write(text: str) -> None:
    """Data as it comes."""
    sys.stdout.write(text)
    sys.stdout.flush()


def write_json(value: Any) -> None:
    write(json.dumps(value, ensure_ascii=False) + "\n")


def write_table(columns: list[str], rows: list[list[str]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        is_count = bool(rows) and all(_is_count(row[columns.index(column)]) for row in rows)
        table.add_column(column, justify="right" if is_count else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # A pipe has no width: columns must not be cut to fit one.
    out = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 400)
    with out.capture() as capture:
        out.print(table)
    write("\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n")


def _is_count(text: str) -> bool:
    return not text or text[0].isdigit() or text[0] == "-"
