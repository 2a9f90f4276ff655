"""Data goes to stdout, everything else to stderr; `--json` makes the data one JSON value."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from penstock.cli.exit_codes import CommandError, ExitCode


class _ForPeople(Console):
    """A command outlives whoever reads its stderr: rich would end it."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


err = _ForPeople(stderr=True, highlight=False, soft_wrap=True)


def say(text: str, *, style: str = "dim") -> None:
    """Progress, for people; lost where it cannot be written."""
    with contextlib.suppress(OSError):
        err.print(text, style=style, markup=False)


def warn(text: str) -> None:
    """Warns of what is only convenient, and fails: the command goes on without."""
    say(f"warning: {text}", style="yellow")


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
    say(f"error: {text}", style="red")


def tell_error(error: Any, *, json: bool, hint: str = "") -> None:
    """The sentence of an error (ours: it has a reason), and with `--json` the value of it."""
    complain(error.message + hint)
    if json:
        found = {"reason": error.reason, "message": error.message, "metadata": error.metadata}
        write_json({"error": found})


def fail(text: str, code: ExitCode) -> NoReturn:
    """Ends the command; with `--json` the sentence is on stdout, too."""
    raise CommandError(text, code)


def write(text: str) -> None:
    """Data as it comes; nothing where the command was started without a stdout."""
    if sys.stdout is not None:
        sys.stdout.write(text)
        sys.stdout.flush()


@contextmanager
def kept_stdout() -> Iterator[Callable[[str], None]]:
    """Writes data where stdout goes now, whatever is done to it until the block ends: what a
    library prints is none."""
    try:
        file = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding=sys.stdout.encoding)
    except (OSError, ValueError, AttributeError):  # it is no file, or there is none
        yield write
        return

    def write_there(text: str) -> None:
        file.write(text)
        file.flush()

    with file:
        yield write_there


def announce(text: str) -> None:
    """Data that the command goes on without: whoever asked for it may have gone."""
    try:
        write(text)
    except OSError as error:
        discard_output()
        warn(f"nobody reads this command's output: {error}.")


def discard_output() -> None:
    """Drops output: else what could not be written is tried again at the end, and fails it."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def write_json(value: Any) -> None:
    write(json_line(value))


def json_line(value: Any) -> str:
    """One line. What is no number in JSON (an endless one, none at all) is null."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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


def read_stdin() -> str:
    """All of it."""
    return "".join(stdin_lines())


def stdin_lines() -> Iterator[str]:
    """One after the other, with their ends."""
    if sys.stdin is None:
        fail("There is no stdin to read from: give the text itself.", ExitCode.USAGE)
    try:
        yield from sys.stdin
    except UnicodeDecodeError:
        fail("What comes from stdin is no UTF-8 text.", ExitCode.USAGE)
