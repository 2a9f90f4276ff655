"""YAML text to plain values, strictly: a key given twice, an alias, a tag of Python are errors.
Knows no configuration.
"""

from collections.abc import Hashable, Iterator
from typing import Any, Final

import yaml

from cluster.errors import ConfigError

MAX_TEXT_BYTES: Final = 1 << 20


def parse_yaml(content: bytes | str, *, source: str, max_bytes: int = MAX_TEXT_BYTES) -> Any:
    """Raises ConfigError, which names `source`."""
    size = len(content.encode(errors="replace") if isinstance(content, str) else content)
    if size > max_bytes:
        raise ConfigError(
            f"{source} has {size} bytes, more than {max_bytes}: give a configuration file."
        )
    try:
        return yaml.load(content, Loader=_StrictLoader)  # a safe loader
    except (yaml.YAMLError, RecursionError, UnicodeError, ValueError) as error:
        raise ConfigError(f"{source} is not valid YAML: {_in_a_line(error)}") from error


def lines_of(content: bytes | str) -> dict[tuple[str | int, ...], int]:
    """The line of each key and item of what `parse_yaml` takes, by the way that leads there."""
    root = yaml.compose(content, Loader=_StrictLoader)
    return dict(_lines(root, ())) if root else {}


def _lines(
    node: yaml.Node, where: tuple[str | int, ...]
) -> Iterator[tuple[tuple[str | int, ...], int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*where, key.value), key.start_mark.line + 1
            yield from _lines(value, (*where, key.value))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*where, index), item.start_mark.line + 1
            yield from _lines(item, (*where, index))


def _in_a_line(error: Exception) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error)
    mark = error.problem_mark
    what = ", ".join(part for part in (error.context, error.problem) if part)
    return f"{what} (line {mark.line + 1}, column {mark.column + 1})."


class _StrictLoader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()  # type: ignore[no-untyped-call]
            # Some bytes of nested aliases stand for gigabytes.
            problem = f"'*{event.anchor}' is an alias: write out what it means"
            raise yaml.constructor.ConstructorError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A key that is given twice is an error: YAML would keep the last one silently."""
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key}' is given twice", key_node.start_mark
                )
            seen.add(key if isinstance(key, str) else "")
        return super().construct_mapping(node, deep)
