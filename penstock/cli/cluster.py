"""`penstock cluster`: descriptions of clusters as files, before anything starts."""

from pathlib import Path
from typing import Annotated

import typer

from deploy.cluster_file.kind import CLUSTER
from penstock.cli import options
from penstock.cli.app import told
from penstock.cli.documents import (
    AllDefaults,
    Files,
    OneFile,
    check_documents,
    compare_documents,
    show_document,
    show_schema,
)
from penstock.cli.exit_codes import ExitCode
from penstock.cli.followed import compare_with_running
from penstock.cli.output import fail

Side = Annotated[Path | None, typer.Argument(help="A description. Default: that of --file.")]

cluster = typer.Typer(
    help="Descriptions of clusters: check, show and compare them.",
    add_completion=False,
    no_args_is_help=True,
)


@cluster.command()
@told
def check(files: Files, json: options.Json = False) -> None:
    """Check descriptions: keys, types, units, and whether they make sense.

    All that is wrong or risky is told, line by line.

    Exit code 0: valid; 1: one is invalid; 2: usage; 3: all are valid, one is risky.
    """
    check_documents(CLUSTER, files, json=json)


@cluster.command()
@told
def show(
    file: OneFile = None, all_defaults: AllDefaults = False, json: options.Json = False
) -> None:
    """Print a description as YAML that 'cluster check' accepts."""
    show_document(CLUSTER, file, all_defaults=all_defaults, json=json)


@cluster.command()
@told
def diff(
    before: Side = None,
    after: Side = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", "-f", metavar="FILE", help="Compared with what runs. Default: none."
        ),
    ] = None,
    address: options.Address = None,
    secrets_file: options.SecretsFile = None,
    json: options.Json = False,
) -> None:
    """Compare what two descriptions mean, or one with the cluster of its name that runs.

    Field by field, defaults included. With --file the other is what 'serve' or 'up' was given,
    with its flags, and what all routers say of workers and policies: what 'penstock policy apply'
    and 'penstock flip' did is in no file. What 'up' would do about it is told, and not done.

    Exit code 0: they mean the same; 1: they differ; 2: one cannot be read or is invalid; 4: a
    router does not answer.

    Example: penstock cluster diff -f cluster.yaml
    """
    if file and before is None:
        compare_with_running(file, address, secrets_file, json=json)
    if before is None or after is None or file:
        fail("Give two descriptions, or '--file' and what runs is the other.", ExitCode.USAGE)
    compare_documents(CLUSTER, before, after, json=json)


@cluster.command()
@told
def schema(json: options.Json = False) -> None:
    """Print the JSON Schema (2020-12) of clusters' files, for editors."""
    show_schema(CLUSTER, json=json)
