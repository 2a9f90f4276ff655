"""Reads what the contract says of a request's fields, once, from the options in its `.proto`:
bounds, defaults, and which are not supported yet. Knows no field by name.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from cluster.errors import InvalidRequest, UnsupportedFeature
from penstock.v1 import inference_pb2 as pb

_PARTS: Final = ("sampling", "stop", "logprobs")  # messages of a request that hold its parameters
_MAX_WHOLE: Final = 2.0**53


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldRule:
    part: str  # of the request; empty: the request itself
    name: str
    keyword: str  # what callers that spell it as a keyword call it
    low: float
    high: float
    note: str
    default: float | None  # None: there is none, or it is no constant
    has_presence: bool
    is_float: bool  # of 32 bits
    is_supported: bool

    @property
    def path(self) -> str:
        return f"{self.part}.{self.name}" if self.part else self.name

    def check(self, value: float, field: str = "", what: str = "") -> None:
        """Raises InvalidRequest for a number that is out of bounds."""
        low, high = self.low, self.high
        if self.is_float:  # compared as the wire has them: 1e-6 there is a little less
            low, high = as_on_the_wire(low), as_on_the_wire(high)
        if low <= value <= high and math.isfinite(value):
            return
        note = f" ({self.note})" if self.note else ""
        raise InvalidRequest(
            field or self.path,
            f"{what or self.name} is {_spelt(value)}; it must lie between {_spelt(self.low)} and "
            f"{_spelt(self.high)}{note}.",
        )

    def value(self, message: Message, default: float | None) -> Any:
        """Gives what it says, else this default. Raises InvalidRequest."""
        if message.HasField(self.name):
            value = getattr(message, self.name)
            self.check(value)
            return value
        return as_on_the_wire(default) if self.is_float and default is not None else default

    def is_said(self, message: Message) -> bool:
        """Something other than its default."""
        value = getattr(message, self.name)
        is_set = message.HasField(self.name) if self.has_presence else bool(value)
        return is_set and (self.default is None or value != self.default)


def as_on_the_wire(value: float) -> float:
    """Rounded to 32 bits, so that a worker that got it by wire computes the same."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def plain_rules(parameters: type) -> tuple[FieldRule, ...]:
    """Gives the rules of those fields of a dataclass of parameters that are what a request's field
    of that name says, or its default."""
    names = {field.name for field in fields(parameters)}
    rules = (rule for rule in RULES.values() if rule.is_supported and rule.default is not None)
    return tuple(rule for rule in rules if rule.name in names)


def plain_values(
    request: pb.GenerateRequest, rules: Sequence[FieldRule], defaults: Any = None
) -> dict[str, Any]:
    """Reads the values by name. What `defaults` has under that name goes before the field's own
    default. Raises InvalidRequest for a number that is out of bounds."""
    parts: dict[str, Message] = {part: getattr(request, part) for part in _PARTS} | {"": request}
    return {
        rule.name: rule.value(parts[rule.part], getattr(defaults, rule.name, rule.default))
        for rule in rules
    }


def check_supported(request: pb.GenerateRequest) -> None:
    """Raises UnsupportedFeature for a field that says what is not supported yet."""
    for part, rules in _UNSUPPORTED.items():
        if not part or request.HasField(part):
            message: Message = getattr(request, part) if part else request
            for rule in rules:
                if rule.is_said(message):
                    raise UnsupportedFeature(rule.path)


def _spelt(value: float) -> str:
    is_whole = abs(value) < _MAX_WHOLE and value == int(value)
    return str(int(value)) if is_whole else f"{value:g}"


def _rules(message: Any, part: str = "") -> Iterator[FieldRule]:
    for field in message.fields:
        if not part and field.name in _PARTS:
            yield from _rules(field.message_type, field.name)
        else:
            yield _rule(field, part)


def _rule(field: Any, part: str) -> FieldRule:
    said: pb.FieldRules = field.GetOptions().Extensions[pb.rules]
    is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
    number = field.message_type.fields_by_name["value"] if is_map else field
    return FieldRule(
        part=part,
        name=field.name,
        keyword=said.keyword or field.name,
        low=said.at_least if said.HasField("at_least") else -math.inf,
        high=said.at_most if said.HasField("at_most") else math.inf,
        note=said.note,
        default=_kind(field)(said.default) if said.HasField("default") else None,
        has_presence=field.has_presence,
        is_float=_kind(number) is float,
        is_supported=not said.unsupported,
    )


def _kind(field: Any) -> type[float]:
    return {FieldDescriptor.TYPE_FLOAT: float, FieldDescriptor.TYPE_BOOL: bool}.get(field.type, int)


RULES: Final = {rule.path: rule for rule in _rules(pb.GenerateRequest.DESCRIPTOR)}
# Known, and refused by name whenever set.
UNSUPPORTED: Final = tuple(sorted(path for path, rule in RULES.items() if not rule.is_supported))
_UNSUPPORTED: Final = {
    part: [rule for rule in RULES.values() if rule.part == part and not rule.is_supported]
    for part in ("", *_PARTS)
}
