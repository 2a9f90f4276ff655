"""What a command is given beside its options: text on stdin, and files."""

import sys

from penstock.cli.exit_codes import ExitCode
from penstock.cli.output import fail


def read_stdin() -> str:
    """All of it."""
    if sys.stdin is None:
        fail("There is no stdin to read from: give the text itself.", ExitCode.USAGE)
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        fail("What comes from stdin is no UTF-8 text.", ExitCode.USAGE)
