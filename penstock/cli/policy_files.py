"""`penstock policy check|show|diff|schema|import`: policies as files, without a cluster."""

import shlex
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cluster.document.keys import yaml_text
from cluster.errors import ConfigError
from penstock.cli import options
from penstock.cli.documents import (
    After,
    AllDefaults,
    Before,
    Files,
    OneFile,
    check_documents,
    compare_documents,
    read_document,
    show_document,
    show_schema,
)
from penstock.cli.exit_codes import ExitCode
from penstock.cli.output import fail, read_stdin, say, write, write_json
from router.policy_file.document import effective
from router.policy_file.kind import POLICY
from router.policy_file.llmd import import_llmd
from router.policy_file.sglang import import_sglang


class Foreign(StrEnum):
    LLMD = "llm-d"
    SGLANG = "sglang"


IMPORTS = {Foreign.LLMD: import_llmd, Foreign.SGLANG: import_sglang}

PolicyFile = Annotated[Path, typer.Argument(metavar="FILE", help="A policy; '-' is stdin.")]


def check(files: Files, json: options.Json = False) -> None:
    """Check policies: keys, types, units, and whether they make sense.

    All that is wrong or risky is told, line by line.

    Exit code 0: valid; 1: one is invalid; 2: usage; 3: all are valid, one is risky.
    """
    check_documents(POLICY, files, json=json)


def show(
    file: OneFile = None, all_defaults: AllDefaults = False, json: options.Json = False
) -> None:
    """Print a policy as YAML that 'policy check' accepts."""
    show_document(POLICY, file, all_defaults=all_defaults, json=json)


def diff(before: Before, after: After, json: options.Json = False) -> None:
    """Compare what two policies mean, field by field, defaults included.

    Exit code 0: they mean the same; 1: they differ; 2: one cannot be read or is invalid.
    """
    compare_documents(POLICY, before, after, json=json)


def schema(json: options.Json = False) -> None:
    """Print the JSON Schema (2020-12) of policy files, for editors."""
    show_schema(POLICY, json=json)


def import_policy(
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="FILE | -- FLAGS", help="A file, '-' for stdin, or flags."),
    ],
    kind: Annotated[Foreign, typer.Option("--from", help="Whose configuration it is.")],
    json: options.Json = False,
) -> None:
    """Turn another router's configuration into a policy, on stdout.

    What cannot be carried over is listed on stderr. Exit code 0: there is a policy; 1: what was
    given is not known here; 2: usage. Examples:

      penstock policy import epp.yaml --from llm-d > policy.yaml

      penstock policy import --from sglang -- --policy cache_aware --balance-abs-threshold 32
    """
    try:
        imported = IMPORTS[kind](*_foreign_text(arguments))
    except ConfigError as error:
        fail(error.message, ExitCode.FAILURE)
    shown = effective(imported.document)
    if json:
        write_json({"policy": shown, "not_carried_over": imported.notes})
    else:
        write(yaml_text(shown))
    for note in imported.notes:
        say(f"not carried over: {note}", style="yellow")


COMMANDS: dict[str, Callable[..., None]] = {
    "check": check,
    "show": show,
    "diff": diff,
    "schema": schema,
    "import": import_policy,
}


def valid_policy(path: Path) -> tuple[str, str]:
    """Reads where a policy comes from, and what it says. Raises ConfigError unless that is a valid
    policy."""
    source, content = read_document(POLICY, path)
    POLICY.parse(content, source)
    return source, content if isinstance(content, str) else content.decode()


def _foreign_text(arguments: list[str]) -> tuple[str, str]:
    """Reads what to import, and where it comes from."""
    [first, *others] = arguments
    if others or first.startswith("--"):
        return shlex.join(arguments), "the flags"
    if first == "-":
        return read_stdin(), "stdin"
    try:
        return Path(first).read_text(), first
    except UnicodeDecodeError as error:
        raise ConfigError(f"'{first}' cannot be read: it is no UTF-8 text.") from error
    except OSError as error:
        raise ConfigError(f"'{first}' cannot be read: {error.strerror}.") from error
