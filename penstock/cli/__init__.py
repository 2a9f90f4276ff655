"""The `penstock` command. Imported by its entry point only; the SDK does not need it."""

import os
import sys


def main() -> None:
    """Runs the command line; says what is missing where only the SDK is installed."""
    # Before gRPC is imported: its own log lines are no use to a person, errors tell what fails.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        from penstock.cli.app import run
    except ModuleNotFoundError as error:
        sys.exit(
            f"The command line needs '{error.name}', which the SDK alone does not install:"
            " pip install 'penstock[cluster]'"
        )
    run(sys.argv[1:])
