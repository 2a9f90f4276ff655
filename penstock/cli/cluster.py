"""`penstock cluster`: descriptions of clusters as files, before anything starts."""

import typer

from deploy.cluster_file.kind import CLUSTER
from penstock.cli import options
from penstock.cli.app import told
from penstock.cli.documents import (
    After,
    AllDefaults,
    Before,
    Files,
    OneFile,
    check_documents,
    compare_documents,
    show_document,
    show_schema,
)

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
def diff(before: Before, after: After, json: options.Json = False) -> None:
    """Compare what two descriptions mean, field by field, defaults included.

    Exit code 0: they mean the same; 1: they differ; 2: one cannot be read or is invalid.
    """
    compare_documents(CLUSTER, before, after, json=json)


@cluster.command()
@told
def schema(json: options.Json = False) -> None:
    """Print the JSON Schema (2020-12) of clusters' files, for editors."""
    show_schema(CLUSTER, json=json)
