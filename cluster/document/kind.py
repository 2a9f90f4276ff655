"""The kinds of documents that operators write, check, compare and apply.

    apiVersion: penstock/v1
    kind: KIND
    metadata: {name: NAME}
    spec: {...}

Keys are camelCase and nothing else; quantities carry their unit (`750ms`, `8GiB`, `5%`). What is
wrong anywhere makes no document at all.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from cluster.config import InvalidConfig, Wrong
from cluster.document.keys import parse_section
from cluster.errors import ConfigError
from cluster.strict_yaml import parse_yaml

D = TypeVar("D")

API_VERSION: Final = "penstock/v1"


def _nothing(_: Any) -> tuple[Wrong, ...]:
    """Finds nothing, for a kind whose sections say all that can be wrong."""
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentKind(Generic[D]):
    """One kind: its documents are dataclasses of type `document`."""

    name: str  # in a file
    noun: str  # in sentences
    document: type[D]
    max_bytes: int  # of a file
    default: Callable[[], D]  # what holds where no file was given
    effective: Callable[[D], dict[str, Any]]  # as a file would say it, every default told
    faults: Callable[[D], Iterable[Wrong]] = _nothing  # what does not fit together
    risks: Callable[[D], Iterable[str]]  # allowed and probably not meant: each begins with a place
    schema: Path  # the file that ships
    # Of the keys that items of its lists must have: what is right, while the rest is looked at.
    stand_ins: Mapping[str, str] = field(default_factory=lambda: {"name": "unnamed"})

    def load(self, path: Path) -> D:
        """Raises ConfigError."""
        return self.parse(self.read(path), str(path))

    def read(self, path: Path) -> bytes:
        """No more than is too much. Raises ConfigError."""
        try:
            with path.open("rb") as file:
                return file.read(self.max_bytes + 1)
        except OSError as error:
            raise ConfigError(
                f"'{path}' cannot be read: {error.strerror}. Give a {self.noun}."
            ) from error

    def parse(self, text: str | bytes, source: str = "") -> D:
        """Raises ConfigError, with the place and what to do, of the first kind of fault found."""
        source = source or f"the {self.noun}"
        mapping = self.mapping_of(text, source)
        if not isinstance(mapping, Mapping) or "apiVersion" not in mapping or "kind" not in mapping:
            raise ConfigError(
                f"In {source}: this is no {self.noun}: begin with 'apiVersion: {API_VERSION}' and"
                f" 'kind: {self.name}'."
            )
        return self.document_of(mapping, source)

    def mapping_of(self, text: str | bytes, source: str) -> Any:
        """Reads what YAML says, whatever it is. Raises ConfigError."""
        return parse_yaml(text, source=source, max_bytes=self.max_bytes)

    def document_of(self, mapping: Mapping[str, Any], source: str) -> D:
        """Makes the document of what stands in a file. Raises ConfigError."""
        document: D = parse_section(self.document, mapping, source)
        if wrong := tuple(self.faults(document)):
            raise InvalidConfig(source, wrong)
        return document


def digest_of(spec: Mapping[str, Any]) -> str:
    """Digests what is effective: defaults that are written out change nothing."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]
