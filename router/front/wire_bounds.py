"""Bounds of a request that hold before it is parsed, told from the lengths of its fields.

To parse what millions of fields were packed into takes the event loop as long as a hundred
requests. Here a field is stepped over; a field too many, or too long, ends it.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from google.protobuf.message import Message

from cluster.errors import InvalidRequest, UnsupportedFeature
from cluster.limits import Limits
from router.front.field_rules import UNSUPPORTED
from router.front.model_info import ModelInfo
from router.front.prompt import check_prompt_bytes, check_text_bytes

FREE_BYTES: Final = 64 << 10  # are parsed in a millisecond, whatever they hold
_MAX_FIELDS: Final = 256  # of a request itself, where it has more bytes than that
_ID_BYTES: Final = 6  # at most, where each has a tag of its own

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED: Final = {_FIXED64: 8, _FIXED32: 4}


def check_wire(data: bytes, message_type: type[Message], info: ModelInfo, limits: Limits) -> int:
    """Returns how many bytes of text there are to tokenise, where they are many. Raises
    InvalidRequest or UnsupportedFeature, as the parsed request would be refused."""
    if len(data) <= FREE_BYTES:
        return 0
    sizes = _sizes(data, message_type, limits)
    num_text_bytes = sizes["text"] + sizes["chat"]
    check_text_bytes(sizes.pop("text", 0), info, limits)
    check_prompt_bytes(sizes.pop("chat", 0), "chat.messages", limits)
    _check_bytes(sizes.pop("token_ids", 0), _ID_BYTES * info.context_length, "token_ids")
    most = 2 * _ID_BYTES * info.vocab_size + FREE_BYTES  # allowed and bad ids
    _check_bytes(sizes.pop("sampling", 0), most, "sampling")
    _check_bytes(sizes.total(), FREE_BYTES, "request")
    return num_text_bytes


def _sizes(data: bytes, message_type: type[Message], limits: Limits) -> Counter[str]:
    """Bytes by the name of a field; the unknown ones have none."""
    names = {field.number: field.name for field in message_type.DESCRIPTOR.fields}
    sizes, num_left = Counter[str](), limits.max_messages + 1  # with what else a chat says
    for number, start, stop in _fields(data, 0, len(data), _MAX_FIELDS, "request"):
        name = names.get(number, "")
        if name in UNSUPPORTED:
            raise UnsupportedFeature(name)
        sizes[name] += stop - start
        if name == "chat":
            num_left -= sum(1 for _ in _fields(data, start, stop, num_left, "chat.messages"))
    return sizes


def _check_bytes(num_bytes: int, most: int, field: str) -> None:
    if num_bytes > most:
        raise InvalidRequest(
            field,
            f"'{field}' takes {num_bytes} bytes; the model can use {most} at most: send less.",
        )


def _fields(
    data: bytes, start: int, stop: int, max_fields: int, field: str
) -> Iterator[tuple[int, int, int]]:
    """Number, start and stop of one field after another."""
    position = start
    for _ in range(max_fields):
        if position >= stop:
            break
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == _BYTES:
            length, position = _varint(data, position)
        elif kind == _VARINT:
            length = _varint(data, position)[1] - position
        elif kind in _FIXED:
            length = _FIXED[kind]
        else:
            raise _malformed(data)
        yield tag >> 3, position, position + length
        position += length
    if position > stop:
        raise _malformed(data)
    if position < stop:
        raise InvalidRequest(
            field, f"'{field}' has more than {max_fields} parts, which is too many: send fewer."
        )


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """The number there, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _malformed(data)


def _malformed(data: bytes) -> InvalidRequest:
    return InvalidRequest("request", f"These {len(data)} bytes are no request: they are malformed.")
