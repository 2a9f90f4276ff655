"""The fields of a request that the contract has, as JSON: what type each is there, what its bounds
are, and how it is written into a `GenerateRequest`. Knows no field by name.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, NamedTuple

from google.protobuf.descriptor import FieldDescriptor

from cluster.errors import InvalidRequest, UnsupportedFeature
from penstock.v1 import inference_pb2 as pb
from router.front.field_rules import RULES, FieldRule
from router.http.typed_json import Meta

_KINDS: Final[Mapping[int, type[Any]]] = {
    FieldDescriptor.CPPTYPE_STRING: str,
    FieldDescriptor.CPPTYPE_BOOL: bool,
    FieldDescriptor.CPPTYPE_FLOAT: float,
}
NO_OTHER_NAMES: Final[Mapping[str, str]] = {}


class Target(NamedTuple):
    """Where a JSON field goes."""

    rule: FieldRule
    kind: Any  # its type in JSON


def contract_fields() -> list[tuple[str, Any, None]]:
    """Returns name, type and default of each, to make a type of."""
    return [(name, _annotated(target), None) for name, target in TARGETS.items()]


def write(request: pb.GenerateRequest, values: Mapping[str, Any]) -> None:
    """Writes what is said under these names. Raises InvalidRequest for what has no place on the
    wire, and UnsupportedFeature for what is not supported yet."""
    for name, value in values.items():
        if value is not None:
            rule = TARGETS[name].rule
            if rule.is_supported:
                _write(getattr(request, rule.part) if rule.part else request, rule, value)
            elif value and value != rule.default:
                raise UnsupportedFeature(rule.path)


def parameter(path: str, names: Mapping[str, str] = NO_OTHER_NAMES) -> str:
    """Says what callers of this door call a field of a `GenerateRequest`, with what stands behind
    its name: `chat.messages[5].role` is `messages[5].role`; or by `names`, which go before."""
    ours, bracket, behind = path.partition("[")
    name = _PATHS.get(ours, ours)
    return names.get(name, name) + bracket + behind


def _write(message: Any, rule: FieldRule, value: Any) -> None:
    try:
        match value:
            case str() if isinstance(getattr(message, rule.name), str):
                setattr(message, rule.name, value)
            case str():
                getattr(message, rule.name).append(value)
            case list():
                getattr(message, rule.name).extend(value)
            case dict():
                getattr(message, rule.name).update(value)
            case float() if not rule.is_float:
                getattr(message, rule.name).FromNanoseconds(round(value * 1e9))
            case _:
                setattr(message, rule.name, value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(rule.path, f"'{rule.keyword}' is out of range: {error}.") from error


def _annotated(target: Target) -> Any:
    """With the bounds as a page shows them; who checks them is the pipeline."""
    rule = target.rule
    if not rule.is_supported:
        return Any
    bounds = {"minimum": rule.low, "maximum": rule.high}
    shown = {key: value for key, value in bounds.items() if abs(value) < float("inf")}
    if rule.default is not None:
        shown["default"] = rule.default
    return Annotated[target.kind | None, Meta(extra_json_schema=shown)]


def _targets() -> Iterator[tuple[str, Target]]:
    for rule in RULES.values():
        message: Any = pb.GenerateRequest.DESCRIPTOR
        if rule.part:
            message = message.fields_by_name[rule.part].message_type
        field: Any = message.fields_by_name[rule.name]
        oneof = field.containing_oneof
        if oneof is None or oneof.name == f"_{rule.name}":  # the prompt is one of three
            yield rule.keyword, Target(rule, _kind(field))


def _kind(field: Any) -> Any:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        pair = message.fields_by_name
        return dict[_plain(pair["key"]), _plain(pair["value"])]  # type: ignore[misc]
    if field.is_repeated:
        kind = _plain(field)
        return str | list[str] if kind is str else list[kind]  # type: ignore[valid-type]
    return _plain(field)


def _plain(field: Any) -> type[Any]:
    """A `Duration` is seconds."""
    return float if field.message_type is not None else _KINDS.get(field.cpp_type, int)


TARGETS: Final = dict(_targets())
_PATHS: Final = {rule.path: rule.keyword for rule in RULES.values()} | {
    "text": "prompt",
    "token_ids": "prompt",
    "token_ids.ids": "prompt",
    "chat": "messages",
    "chat.messages": "messages",
}
