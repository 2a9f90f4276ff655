"""Reads what a command is given beside its options: text on stdin, and files."""

import sys
from collections.abc import Iterator

from penstock.cli.exit_codes import ExitCode
from penstock.cli.output import fail


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
