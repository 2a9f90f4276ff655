"""The JSON Schema (2020-12) of policy files, made from the values they become. It knows keys,
types, units and defaults; bounds and what must fit together only the parser knows.
"""

import dataclasses
import inspect
import json
import typing
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Literal

from router.bounds import NAME_PATTERN
from router.policies.registry import DEFAULT, RULES
from router.policy_file.document import PlacementSpec, PolicyDocument
from router.policy_file.keys import Key, keys_of, to_file, without_none

SHIPPED: Final = Path(__file__).with_name("policy.schema.json")
_PLAIN: Final = {str: "string", bool: "boolean", int: "integer", float: "number"}
_OPTIONAL_ENVELOPE: Final = {"api_version", "kind"}  # in Python; a file must say what it is

Schema = dict[str, Any]


def policy_schema() -> Schema:
    sections: dict[str, Schema] = {}
    document = _section(PolicyDocument, sections)
    rules = [_rule_schema(name, rule, sections) for name, rule in RULES.items()]
    placement = sections[PlacementSpec.__name__]
    placement["properties"]["rule"]["enum"] = list(RULES)
    placement["allOf"] = rules
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Penstock RoutingPolicy",
        **document,
        "$defs": sections,
    }


def schema_text() -> str:
    return json.dumps(policy_schema(), indent=2) + "\n"


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
    """What an editor shows of a key: what it means, and its default if it has a plain one."""
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
        return _reference(typing.cast("type[Any]", type_), sections)
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
    raise TypeError(f"A policy file has no way to say {origin}[{arguments}].")


def _reference(section: type[Any], sections: dict[str, Schema]) -> Schema:
    name = section.__name__
    if name not in sections:
        sections[name] = {}  # a shadow's policy is a policy: stands before it is known
        sections[name] = _section(section, sections)
    return {"$ref": f"#/$defs/{name}"}


def _rule_schema(name: str, rule: type[Any], sections: dict[str, Schema]) -> Schema:
    is_named: Schema = {"properties": {"rule": {"const": name}}}
    if name != DEFAULT:
        is_named["required"] = ["rule"]
    return {"if": is_named, "then": {"properties": {"parameters": _reference(rule, sections)}}}


if __name__ == "__main__":
    print(schema_text(), end="")
