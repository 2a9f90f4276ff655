"""All that is wrong in a document, or risky, at once and with its line: for whoever writes one.

Parsing stops where one fault hides others. Here what was found is taken out, and the rest is
parsed again, until nothing is left to find.
"""

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeGuard, TypeVar

import yaml

from cluster.config import InvalidConfig, Wrong, place_of
from cluster.document.keys import Where
from cluster.document.kind import DocumentKind
from cluster.errors import ConfigError
from cluster.strict_yaml import lines_of

D = TypeVar("D")

MAX_FINDINGS: Final = 50
_PLACE: Final = re.compile(r"'([^' ]+)'")


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentFinding:
    """A sentence about a document, and the line that it is about."""

    sentence: str
    line: int | None = None  # counted from 1; None: of the whole file


@dataclass(frozen=True, slots=True, kw_only=True)
class Review(Generic[D]):
    """Holds what there is to say about a text: a document, or why it is none."""

    document: D | None
    findings: tuple[DocumentFinding, ...]


def review(kind: DocumentKind[D], text: str | bytes, source: str) -> Review[D]:
    """Never raises: what is wrong are findings, in the order of their lines."""
    try:
        document = kind.parse(text, source)
    except InvalidConfig:
        lines = lines_of(text)
        wrong = _all_wrong(kind, kind.mapping_of(text, source))
        found = [_at(each.where, each.sentence, lines) for each in wrong]
        found.sort(key=lambda each: each.line or 0)
        if len(found) == MAX_FINDINGS:
            found.append(DocumentFinding(sentence="There may be more: mend these first."))
        return Review(document=None, findings=tuple(found))
    except ConfigError as error:
        line = _line_of_yaml(error.__cause__)
        return Review(document=None, findings=(DocumentFinding(sentence=error.message, line=line),))
    return Review(document=document, findings=tuple(_risks(kind.risks(document), lines_of(text))))


def _risks(sentences: Iterable[str], lines: Mapping[Where, int]) -> Iterator[DocumentFinding]:
    by_place = {place_of(where): where for where in lines}
    for sentence in sentences:
        place = _PLACE.match(sentence)
        where = by_place.get(place[1] if place else "", ("spec",))
        yield _at(where, sentence, lines)


def _at(where: Where, sentence: str, lines: Mapping[Where, int]) -> DocumentFinding:
    """Adds the line; what is missing has none: it gets that of what it is missing in."""
    ways = (where[:length] for length in range(len(where), 0, -1))
    return DocumentFinding(
        sentence=sentence, line=next((lines[way] for way in ways if way in lines), None)
    )


def _line_of_yaml(cause: BaseException | None) -> int | None:
    mark = cause.problem_mark if isinstance(cause, yaml.MarkedYAMLError) else None
    return mark.line + 1 if mark else None


def _all_wrong(kind: DocumentKind[D], original: Any) -> list[Wrong]:
    mapping = original
    found: dict[str, Wrong] = {}
    taken: set[Where] = set()
    while len(found) < MAX_FINDINGS and (wrong := _wrong(kind, mapping)):
        earlier, left = frozenset(taken), mapping
        for each in wrong[: MAX_FINDINGS - len(found)]:
            where = _culprit(kind, mapping, each)
            is_taken = _value_at(left, where) is None and _value_at(original, where) is not None
            if not (where in earlier or is_taken):
                found.setdefault(each.sentence, each._replace(where=where))
            while where in earlier:  # it cannot be without: then what it is in goes, too
                where = where[:-1]
            if not where:
                return list(found.values())
            if where not in taken:
                taken.add(where)
                mapping = _without(kind, mapping, where)
    return list(found.values())


def _wrong(kind: DocumentKind[D], mapping: Any) -> tuple[Wrong, ...]:
    try:
        kind.document_of(mapping, "it")
    except InvalidConfig as error:
        return error.wrong
    except ConfigError as error:
        return (Wrong((), error.message),)
    return ()


def _culprit(kind: DocumentKind[D], mapping: Any, wrong: Wrong) -> Where:
    """The key by which a whole section is wrong: without it the sentence is not said."""
    section = _value_at(mapping, wrong.where)
    of_section = wrong.sentence.startswith(f"'{place_of(wrong.where)}': ")
    if not (of_section and isinstance(section, Mapping)):
        return wrong.where
    named = [where for where in _leaves(section) if f"'{where[-1]}'" in wrong.sentence]
    named.sort(key=lambda where: wrong.sentence.index(f"'{where[-1]}'"))
    for leaf in dict.fromkeys([*named, *_leaves(section)]):
        where = (*wrong.where, *leaf)
        left = _wrong(kind, _without(kind, mapping, where))
        if wrong.sentence not in {each.sentence for each in left}:
            return where
    return wrong.where


def _leaves(section: Mapping[str, Any]) -> list[Where]:
    """Ways to single settings, then to sections and lists."""
    single = [(key,) for key, value in section.items() if not isinstance(value, dict | list)]
    inner = [
        (key, *leaf)
        for key, value in section.items()
        if isinstance(value, dict)
        for leaf in _leaves(value)
    ]
    return [*single, *inner, *((key,) for key in section)]


def _value_at(mapping: Any, where: Where) -> Any:
    for step in where:
        try:
            mapping = mapping[step]
        except (KeyError, IndexError, TypeError):
            return None
    return mapping


def _without(kind: DocumentKind[D], mapping: Any, where: Where) -> Any:
    """A copy that lacks what is there, or, where nothing is, what it is missing in. What every
    section must have stays, as something that is right, and items of lists stay in their places:
    else more would be wrong."""
    fresh = copy.deepcopy(mapping)
    if _value_at(fresh, where[:-1]) is None:
        return fresh  # what it is in has gone before
    for length in range(len(where), 0, -1):
        parent, key = _value_at(fresh, where[: length - 1]), where[length - 1]
        if isinstance(parent, dict) and (key in parent or key in kind.stand_ins):
            parent.pop(key, None)
            if key in kind.stand_ins:
                parent[key] = _stand_in(kind, str(key), where)
            break
        if isinstance(parent, list) and _is_index(key) and key < len(parent):
            parent[key] = {each: _stand_in(kind, each, where) for each in kind.stand_ins}
            break
    return fresh


def _stand_in(kind: DocumentKind[D], key: str, where: Where) -> str:
    """Names differ."""
    indexes = map(str, filter(_is_index, where)) if key == "name" else ()
    return "-".join((kind.stand_ins[key], *indexes))


def _is_index(step: str | int) -> TypeGuard[int]:
    return isinstance(step, int)
