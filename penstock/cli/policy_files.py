"""`penstock policy check|show|diff|schema|import`: policies as files, without a cluster."""

import json as json_module
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.errors import ConfigError
from penstock.cli import options
from penstock.cli.exit_codes import ExitCode
from penstock.cli.given import read_stdin
from penstock.cli.output import fail, say, write, write_json
from router.policy_file.difference import change_text, differences
from router.policy_file.document import (
    PolicyDocument,
    default_document,
    effective,
    parse_policy,
    read_policy,
    yaml_text,
)
from router.policy_file.findings import PolicyFinding, Review, review
from router.policy_file.llmd import import_llmd
from router.policy_file.schema import SHIPPED
from router.policy_file.sglang import import_sglang

STDIN = Path("-")


class Verdict(IntEnum):
    """How `policy check` ends."""

    VALID = 0
    INVALID = 1
    RISKY = 3  # valid, and probably not what is meant


class Foreign(StrEnum):
    LLMD = "llm-d"
    SGLANG = "sglang"


IMPORTS = {Foreign.LLMD: import_llmd, Foreign.SGLANG: import_sglang}

PolicyFile = Annotated[Path, typer.Argument(metavar="FILE", help="A policy; '-' is stdin.")]


def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="'-' is stdin.")],
    json: options.Json = False,
) -> None:
    """Check policies: keys, types, units, and whether they make sense.

    All that is wrong or risky is told, line by line.

    Exit code 0: valid; 1: one is invalid; 2: usage; 3: all are valid, one is risky.
    """
    found = [Checked(str(path), _review(path)) for path in files]
    if json:
        write_json([each.as_json() for each in found])
    else:
        write("".join(each.as_text() for each in found))
    verdicts = {each.verdict for each in found}
    worst = (each for each in (Verdict.INVALID, Verdict.RISKY) if each in verdicts)
    raise typer.Exit(next(worst, Verdict.VALID))


def show(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Default: what holds without one.")
    ] = None,
    all_defaults: Annotated[
        bool, typer.Option("--effective", help="Every default, too; else what differs from them.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Print a policy as YAML that 'policy check' accepts."""
    document = _load(file) if file else default_document()
    shown = effective(document) if all_defaults else _told(document)
    if json:
        write_json(shown)
    else:
        write(yaml_text(shown))


def diff(
    before: Annotated[Path, typer.Argument(metavar="BEFORE")],
    after: Annotated[Path, typer.Argument(metavar="AFTER")],
    json: options.Json = False,
) -> None:
    """Compare what two policies mean, field by field, defaults included.

    Exit code 0: they mean the same; 1: they differ; 2: one cannot be read or is invalid.
    """
    try:
        documents = [_load(path) for path in (before, after)]
    except ConfigError as error:
        fail(error.message, ExitCode.USAGE)
    changes = differences(*documents)
    if json:
        write_json(changes)
    else:
        write("".join(f"{change_text(change)}\n" for change in changes))
    raise typer.Exit(1 if changes else 0)


def schema(json: options.Json = False) -> None:
    """Print the JSON Schema (2020-12) of policy files, for editors."""
    text = SHIPPED.read_text()
    if json:
        write_json(json_module.loads(text))
    else:
        write(text)


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
    """Where it comes from, and what it says. Raises ConfigError unless that is a valid policy."""
    source, content = _read(path)
    parse_policy(content, source)
    return source, content if isinstance(content, str) else content.decode()


def _load(path: Path) -> PolicyDocument:
    source, content = _read(path)
    return parse_policy(content, source)


def _read(path: Path) -> tuple[str, str | bytes]:
    """(where it comes from, what it says). Raises ConfigError."""
    return ("stdin", read_stdin()) if path == STDIN else (str(path), read_policy(path))


def _review(path: Path) -> Review:
    try:
        source, content = _read(path)
    except ConfigError as error:
        return Review(document=None, findings=(PolicyFinding(sentence=error.message),))
    return review(content, source)


@dataclass(frozen=True, slots=True)
class Checked:
    """A file and what there is to say about it."""

    file: str
    review: Review

    @property
    def verdict(self) -> Verdict:
        if self.review.document is None:
            return Verdict.INVALID
        return Verdict.RISKY if self.review.findings else Verdict.VALID

    def as_text(self) -> str:
        lines = [f"{self.file}: {self.verdict.name.lower()}"]
        for each in self.review.findings:
            line = f"line {each.line}: " if each.line else ""
            lines.append(f"  {line}{each.sentence}")
        return "\n".join(lines) + "\n"

    def as_json(self) -> dict[str, Any]:
        document = self.review.document
        named = {"name": document.metadata.name, "digest": document.digest} if document else {}
        return {
            "file": self.file,
            "verdict": self.verdict.name.lower(),
            "sentences": [each.sentence for each in self.review.findings],
            "findings": list(map(asdict, self.review.findings)),
            **named,
        }


def _told(document: PolicyDocument) -> dict[str, Any]:
    """What differs from the defaults, in its envelope."""
    shown = effective(document)
    return {**shown, "spec": _differing(shown["spec"], effective(default_document())["spec"])}


def _differing(value: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in value.items():
        if item == default.get(key, ...):
            continue
        usual = default.get(key)
        both = isinstance(item, dict) and isinstance(usual, dict)
        found[key] = _differing(item, usual) if both and usual else item
    return found


def _foreign_text(arguments: list[str]) -> tuple[str, str]:
    """What to import, and where it comes from."""
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
