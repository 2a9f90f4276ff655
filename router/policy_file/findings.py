"""All that is wrong in a policy, or risky, at once and with its line: for whoever writes one.

Parsing stops where one fault hides others. Here what was found is taken out, and the rest is
parsed again, until nothing is left to find.
"""

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

import yaml

from cluster.config import InvalidConfig, Wrong, place_of
from cluster.errors import ConfigError
from cluster.strict_yaml import lines_of, parse_yaml
from router.policy_file.document import (
    MAX_POLICY_BYTES,
    PolicyDocument,
    document_of,
    parse_policy,
)
from router.policy_file.keys import Where
from router.policy_file.review import risks

MAX_FINDINGS: Final = 50
_PLACE: Final = re.compile(r"'([^' ]+)'")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFinding:
    """A sentence about a policy, and the line that it is about."""

    sentence: str
    line: int | None = None  # counted from 1; None: of the whole file


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """What there is to say about a text: a policy, or why it is none."""

    document: PolicyDocument | None
    findings: tuple[PolicyFinding, ...]


def review(text: str | bytes, source: str) -> Review:
    """Never raises: what is wrong are findings, in the order of their lines."""
    try:
        document = parse_policy(text, source)
    except InvalidConfig:
        mapping = parse_yaml(text, source=source, max_bytes=MAX_POLICY_BYTES)
        lines = lines_of(text)
        found = [_at(each.where, each.sentence, lines) for each in _all_wrong(mapping)]
        found.sort(key=lambda each: each.line or 0)
        if len(found) == MAX_FINDINGS:
            found.append(PolicyFinding(sentence="There may be more: mend these first."))
        return Review(document=None, findings=tuple(found))
    except ConfigError as error:
        line = _line_of_yaml(error.__cause__)
        return Review(document=None, findings=(PolicyFinding(sentence=error.message, line=line),))
    return Review(document=document, findings=tuple(_risks(document, lines_of(text))))


def _risks(document: PolicyDocument, lines: Mapping[Where, int]) -> Iterator[PolicyFinding]:
    by_place = {place_of(where): where for where in lines}
    for sentence in risks(document):
        place = _PLACE.match(sentence)
        where = by_place.get(place[1] if place else "", ("spec",))
        yield _at(where, sentence, lines)


def _at(where: Where, sentence: str, lines: Mapping[Where, int]) -> PolicyFinding:
    """What is missing has no line: that of what it is missing in."""
    ways = (where[:length] for length in range(len(where), 0, -1))
    return PolicyFinding(
        sentence=sentence, line=next((lines[way] for way in ways if way in lines), None)
    )


def _line_of_yaml(cause: BaseException | None) -> int | None:
    mark = cause.problem_mark if isinstance(cause, yaml.MarkedYAMLError) else None
    return mark.line + 1 if mark else None


def _all_wrong(mapping: Any) -> list[Wrong]:
    found: dict[str, Wrong] = {}
    while len(found) < MAX_FINDINGS:
        fresh = [each for each in _wrong(mapping) if each.sentence not in found]
        if not fresh:
            break
        for each in fresh[: MAX_FINDINGS - len(found)]:
            where = _culprit(mapping, each)
            found[each.sentence] = each._replace(where=where)
            mapping = _without(mapping, where)
    return list(found.values())


def _wrong(mapping: Any) -> tuple[Wrong, ...]:
    try:
        document_of(mapping, "it")
    except InvalidConfig as error:
        return error.wrong
    except ConfigError as error:
        return (Wrong((), error.message),)
    return ()


def _culprit(mapping: Any, wrong: Wrong) -> Where:
    """The key by which a whole section is wrong: without it the sentence is not said."""
    section = _value_at(mapping, wrong.where)
    of_section = wrong.sentence.startswith(f"'{place_of(wrong.where)}': ")
    if not (of_section and isinstance(section, Mapping)):
        return wrong.where
    named = [where for where in _leaves(section) if f"'{where[-1]}'" in wrong.sentence]
    for leaf in dict.fromkeys([*named, *_leaves(section)]):
        where = (*wrong.where, *leaf)
        if wrong.sentence not in {each.sentence for each in _wrong(_without(mapping, where))}:
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


def _without(mapping: Any, where: Where) -> Any:
    """A copy that lacks what is there, or, where nothing is, what it is missing in. What must
    have a name keeps one, and items of lists stay in their places: else more would be wrong."""
    fresh = copy.deepcopy(mapping)
    for length in range(len(where), 0, -1):
        parent, key = _value_at(fresh, where[: length - 1]), where[length - 1]
        if isinstance(parent, dict) and (key in parent or key == "name"):
            parent.pop(key, None)
            if key == "name":
                parent[key] = "-".join(("unnamed", *map(str, filter(_is_index, where))))
            break
        if isinstance(parent, list) and _is_index(key) and key < len(parent):
            parent[key] = {"name": f"unnamed-{key}"}
            break
    return fresh


def _is_index(step: str | int) -> TypeGuard[int]:
    return isinstance(step, int)
