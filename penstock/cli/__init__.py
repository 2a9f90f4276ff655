"""The `penstock` command. Imported by its entry point only; the SDK does not need it."""

import os
import sys


def main() -> None:
    """Runs the command line; says what is missing where only the SDK is installed."""
    # Before gRPC is imported: its own log lines are no use to a person, errors tell what fails.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        from penstock.cli.app import run

        run(sys.argv[1:])
    except ModuleNotFoundError as error:
        sys.exit(
            f"error: The command line needs '{error.name}', which the SDK alone does not install:"
            " in Penstock's source tree say 'make install', or pip install '.[cluster]' into an"
            " environment of your own."
        )
