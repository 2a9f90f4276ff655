"""Protobuf messages as JSON for scripts: names as in the proto, nothing left out, and numbers are
numbers. Protobuf's own JSON writes 64-bit ones as text, for JavaScript's sake."""

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

_WIDE = {FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64}
_FLOATING = {FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE}  # "NaN" is text, too


def plain(message: Message) -> dict[str, Any]:
    """The message as plain values."""
    found = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return _with_numbers(message.DESCRIPTOR, found)


def _with_numbers(descriptor: Any, values: dict[str, Any]) -> dict[str, Any]:
    fields = descriptor.fields_by_name
    return {name: _number(fields[name], value) for name, value in values.items()}


def _number(field: Any, value: Any) -> Any:
    if isinstance(value, list):
        return [_number(field, item) for item in value]
    if field.cpp_type in _WIDE:
        return int(value)
    if field.cpp_type in _FLOATING:
        return float(value)
    entry = field.message_type
    if entry is None or not isinstance(value, dict):
        return value
    if entry.GetOptions().map_entry:
        return {key: _number(entry.fields_by_name["value"], each) for key, each in value.items()}
    return _with_numbers(entry, value)
