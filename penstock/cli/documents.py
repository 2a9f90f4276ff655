"""Does what commands do with documents as files, whatever their kind: check, show, compare, and
tell editors."""

import json as json_module
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any, Final, Generic, NoReturn, TypeVar

import typer

from cluster.document.difference import change_text, differences
from cluster.document.keys import yaml_text
from cluster.document.kind import DocumentKind, digest_of
from cluster.errors import ConfigError
from penstock.cli.exit_codes import ExitCode
from penstock.cli.findings import DocumentFinding, Review, review
from penstock.cli.output import fail, read_stdin, write, write_json

D = TypeVar("D")

STDIN: Final = Path("-")

Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="'-' is stdin.")]
OneFile = Annotated[
    Path | None, typer.Argument(metavar="[FILE]", help="Default: what holds without one.")
]
AllDefaults = Annotated[
    bool, typer.Option("--effective", help="Every default, too; else what differs from them.")
]
Before = Annotated[Path, typer.Argument(metavar="BEFORE")]
After = Annotated[Path, typer.Argument(metavar="AFTER")]


class CheckVerdict(IntEnum):
    """Says how `check` ends."""

    VALID = 0
    INVALID = 1
    RISKY = 3  # valid, and probably not what is meant


@dataclass(frozen=True, slots=True)
class Checked(Generic[D]):
    """A file and what there is to say about it."""

    kind: DocumentKind[D]
    file: str
    review: Review[D]

    @property
    def verdict(self) -> CheckVerdict:
        if self.review.document is None:
            return CheckVerdict.INVALID
        return CheckVerdict.RISKY if self.review.findings else CheckVerdict.VALID

    def as_text(self) -> str:
        lines = [f"{self.file}: {self.verdict.name.lower()}"]
        for each in self.review.findings:
            line = f"line {each.line}: " if each.line else ""
            lines.append(f"  {line}{each.sentence}")
        return "\n".join(lines) + "\n"

    def as_json(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "verdict": self.verdict.name.lower(),
            "sentences": [each.sentence for each in self.review.findings],
            "findings": list(map(asdict, self.review.findings)),
            **self._identity(),
        }

    def _identity(self) -> dict[str, str]:
        if self.review.document is None:
            return {}
        shown = self.kind.effective(self.review.document)
        return {"name": shown["metadata"]["name"], "digest": digest_of(shown["spec"])}


def check_documents(kind: DocumentKind[Any], files: Sequence[Path], *, json: bool) -> NoReturn:
    """Ends the command with the worst verdict."""
    found = [Checked(kind, str(path), _review(kind, path)) for path in files]
    if json:
        write_json([each.as_json() for each in found])
    else:
        write("".join(each.as_text() for each in found))
    verdicts = {each.verdict for each in found}
    worst = (each for each in (CheckVerdict.INVALID, CheckVerdict.RISKY) if each in verdicts)
    raise typer.Exit(next(worst, CheckVerdict.VALID))


def show_document(
    kind: DocumentKind[Any], file: Path | None, *, all_defaults: bool, json: bool
) -> None:
    shown = kind.effective(load_document(kind, file) if file else kind.default())
    if not all_defaults:
        usual = kind.effective(kind.default())["spec"]
        shown = {**shown, "spec": _differing(shown["spec"], usual)}
    if json:
        write_json(shown)
    else:
        write(yaml_text(shown))


def compare_documents(
    kind: DocumentKind[Any], before: Path, after: Path, *, json: bool
) -> NoReturn:
    """Ends the command: 0 where they mean the same, 1 where they differ."""
    try:
        shown = [kind.effective(load_document(kind, path)) for path in (before, after)]
    except ConfigError as error:
        fail(error.message, ExitCode.USAGE)
    changes = differences(*shown)
    if json:
        write_json(changes)
    else:
        write("".join(f"{change_text(change)}\n" for change in changes))
    raise typer.Exit(1 if changes else 0)


def show_schema(kind: DocumentKind[Any], *, json: bool) -> None:
    text = kind.schema.read_text()
    if json:
        write_json(json_module.loads(text))
    else:
        write(text)


def read_document(kind: DocumentKind[Any], path: Path) -> tuple[str, str | bytes]:
    """(where it comes from, what it says). Raises ConfigError."""
    return ("stdin", read_stdin()) if path == STDIN else (str(path), kind.read(path))


def load_document(kind: DocumentKind[D], path: Path) -> D:
    """Raises ConfigError."""
    source, content = read_document(kind, path)
    return kind.parse(content, source)


def _review(kind: DocumentKind[D], path: Path) -> Review[D]:
    try:
        source, content = read_document(kind, path)
    except ConfigError as error:
        return Review(document=None, findings=(DocumentFinding(sentence=error.message),))
    return review(kind, content, source)


def _differing(value: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in value.items():
        if item == default.get(key, ...):
            continue
        usual = default.get(key)
        both = isinstance(item, dict) and isinstance(usual, dict)
        found[key] = _differing(item, usual) if both and usual else item
    return found
