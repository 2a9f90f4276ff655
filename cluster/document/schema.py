"""The JSON Schema (2020-12) of documents, made from the values they become. It knows keys, types,
units and defaults; bounds and what must fit together only the parser knows.
"""

import dataclasses
import inspect
import json
import typing
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Literal

from cluster.bounds import NAME_PATTERN
from cluster.document.keys import Key, keys_of, to_file, without_none

_PLAIN: Final = {str: "string", bool: "boolean", int: "integer", float: "number", Path: "string"}
_OPTIONAL_ENVELOPE: Final = {"api_version", "kind"}  # in Python; a file must say what it is

Schema = dict[str, Any]


def document_schema(document: type[Any], title: str, sections: dict[str, Schema]) -> Schema:
    """`sections` is filled with those that it has, by their names."""
    whole = _section(document, sections)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **whole,
        "$defs": sections,
    }


def schema_text(schema: Schema) -> str:
    return json.dumps(schema, indent=2) + "\n"


def section_reference(section: type[Any], sections: dict[str, Schema]) -> Schema:
    """`sections` has it then."""
    name = section.__name__
    if name not in sections:
        sections[name] = {}  # a shadow's policy is a policy: stands before it is known
        sections[name] = _section(section, sections)
    return {"$ref": f"#/$defs/{name}"}


def _section(section: type[Any], sections: dict[str, Schema]) -> Schema:
    keys = keys_of(section)
    fields = {field.name: field for field in dataclasses.fields(section)}
    required = [key.name for key in keys if key.is_required or key.field in _OPTIONAL_ENVELOPE]
    return {
        "description": _description(section),
        "type": "object",
        "additionalProperties": False,
        "properties": {
            key.name: _told(fields[key.field], key) | _key_schema(key, sections) for key in keys
        },
        **({"required": required} if required else {}),
    }


def _description(section: type[Any]) -> str:
    """Its docstring; of a rule, which has none of its own, the first sentences of its module."""
    own = inspect.getdoc(section) or ""
    if own.startswith(f"{section.__name__}("):  # made by `dataclass`
        own = inspect.getdoc(inspect.getmodule(section)) or ""
    return " ".join(own.partition("\n\n")[0].split()).rstrip(",")


def _told(field: dataclasses.Field[Any], key: Key) -> Schema:
    """Says what an editor shows of a key: what it means, and its default if it has a plain one."""
    meaning = field.metadata.get("meaning")
    told: Schema = {"description": meaning} if meaning else {}
    default: Any = field.default
    if isinstance(default, str | int | float):
        told["default"] = key.unit.show(float(default)) if key.unit else to_file(default)
    return told


def _key_schema(key: Key, sections: dict[str, Schema]) -> Schema:
    meant = without_none(key.type)
    if key.unit:
        schema: Schema = {"type": "string", "pattern": key.unit.pattern}
    elif key.field == "name":
        schema = {"type": "string", "pattern": NAME_PATTERN}
    else:
        schema = _type_schema(meant, sections)
    return schema if meant is key.type else {"anyOf": [schema, {"type": "null"}]}


def _type_schema(type_: Any, sections: dict[str, Schema]) -> Schema:
    if type_ in _PLAIN:
        return {"type": _PLAIN[type_]}
    if dataclasses.is_dataclass(type_):
        return section_reference(typing.cast("type[Any]", type_), sections)
    if isinstance(type_, type) and issubclass(type_, StrEnum):
        return {"enum": [str(member) for member in type_]}
    return _generic_schema(typing.get_origin(type_), typing.get_args(type_), sections)


def _generic_schema(origin: Any, arguments: Any, sections: dict[str, Schema]) -> Schema:
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": _type_schema(arguments[0], sections)}
    if origin is Mapping:
        values = {} if arguments[1] is Any else _type_schema(arguments[1], sections)
        return {"type": "object", "additionalProperties": values or True}
    raise TypeError(f"A document has no way to say {origin}[{arguments}].")
