"""Translates Python's values and a document's mappings into each other: keys are camelCase without
the unit that the field's name ends with, quantities are texts with their unit.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cluster.config import MAX_SHOWN, InvalidConfig, Wrong, parse_config, place_of
from cluster.document.units import Unit, unit_of

Where = tuple[str | int, ...]


class Key(NamedTuple):
    """One key of a section."""

    name: str  # in a file
    field: str  # in Python
    type: Any
    unit: Unit | None
    is_required: bool


def meaning(text: str) -> dict[str, str]:
    """Keeps what a field means for whoever writes a document: in its schema and, word for word, its
    page."""
    return {"meaning": text}


def key_of(field: str) -> str:
    """`max_penalty_s` is `maxPenalty`."""
    unit = unit_of(field)
    first, *others = (field.removesuffix(unit.suffix) if unit else field).split("_")
    return first + "".join(word.capitalize() for word in others)


def keys_of(section: type[Any]) -> tuple[Key, ...]:
    """The keys of a dataclass, in its order."""
    hints = typing.get_type_hints(section)
    return tuple(
        Key(
            name=key_of(field.name),
            field=field.name,
            type=hints[field.name],
            unit=unit_of(field.name) if _is_number(hints[field.name]) else None,
            is_required=field.default is field.default_factory is dataclasses.MISSING,
        )
        for field in dataclasses.fields(section)
    )


def to_file(value: Any) -> Any:
    """A setting as a file writes it: plain values, each default told."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            key.name: _quantity_to_file(key.unit, getattr(value, key.field))
            for key in keys_of(type(value))
        }
    if isinstance(value, StrEnum | Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [to_file(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): to_file(item) for key, item in value.items()}
    return value


def yaml_text(shown: Mapping[str, Any]) -> str:
    """Writes YAML of which, told of a whole document, the same document is made again."""
    return yaml.safe_dump(dict(shown), sort_keys=False, allow_unicode=True, width=100)


def parse_section(section: type[Any], mapping: Mapping[str, Any], source: str) -> Any:
    """The value of a dataclass that a file's mapping means. Raises InvalidConfig with the places
    of what is wrong."""
    wrong: list[Wrong] = []
    plain = from_file(section, mapping, wrong)
    if wrong:
        raise InvalidConfig(source, wrong)
    return parse_config(section, plain, source=source, key_of=key_of)


def from_file(section: Any, value: Any, wrong: list[Wrong], where: Where = ()) -> Any:
    """The same mapping with quantities as plain numbers of their fields' units. What is no
    quantity stays as it is, right or wrong; wrong quantities go to `wrong`."""
    section = without_none(section)
    if dataclasses.is_dataclass(section) and isinstance(value, Mapping):
        keys = {key.name: key for key in keys_of(typing.cast("type[Any]", section))}
        return {
            name: _value_from_file(keys.get(name), item, wrong, (*where, name))
            for name, item in value.items()
        }
    if typing.get_origin(section) is tuple and isinstance(value, list):
        items = typing.get_args(section)[0]
        return [from_file(items, item, wrong, (*where, i)) for i, item in enumerate(value)]
    return value


def without_none(type_: Any) -> Any:
    """Says what an optional type means when it is given."""
    if isinstance(type_, types.UnionType) or typing.get_origin(type_) is typing.Union:
        [type_] = _members(type_)
    return type_


def _members(union: Any) -> Iterator[Any]:
    return (member for member in typing.get_args(union) if member is not types.NoneType)


def _is_number(type_: Any) -> bool:
    return without_none(type_) in (int, float)


def _quantity_to_file(unit: Unit | None, value: Any) -> Any:
    return to_file(value) if unit is None or value is None else unit.show(value)


def _value_from_file(key: Key | None, value: Any, wrong: list[Wrong], where: Where) -> Any:
    if key is None or (value is None and without_none(key.type) is not key.type):
        return value
    if key.unit is None:
        return from_file(key.type, value, wrong, where)
    try:
        number = key.unit.parse(value)
        is_whole = without_none(key.type) is int and number.is_integer()
        return int(number) if is_whole else number
    except ValueError as error:
        wrong.append(Wrong(where, f"'{place_of(where)}' is {_shown(value)}: {error}"))
        return value


def _shown(value: Any) -> str:
    text = f"'{value}'" if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"
