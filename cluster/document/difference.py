"""Finds what changes in meaning from one document to another, field by field, defaults included."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

# "field", "before" and "after"; the side that lacks the field is left out.
Change: TypeAlias = dict[str, Any]


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Compares what is effective."""
    return list(_changes(*(dict(_flat(each)) for each in (before, after))))


def change_text(change: Change) -> str:
    """Tells a change in a line."""
    before, after = (_text(change, side) for side in ("before", "after"))
    return f"{change['field']}: {before} -> {after}"


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of every leaf; items of a list go by their names."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            named = dict(item) if isinstance(item, dict) else {}
            name = named.pop("name", index)
            yield from _flat(named or item, f"{path}[{name}]")
    else:
        yield path, value


def _changes(before: dict[str, Any], after: dict[str, Any]) -> Iterator[Change]:
    for path in dict.fromkeys([*before, *after]):
        sides = (("before", before), ("after", after))
        change = {side: values[path] for side, values in sides if path in values}
        if len(change) == 1 or change["before"] != change["after"]:
            yield {"field": path, **change}


def _text(change: Change, side: str) -> str:
    if side not in change:
        return "absent"
    value = change[side]
    return value if isinstance(value, str) else json.dumps(value)
