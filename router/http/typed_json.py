"""JSON with types, in and out. The one door to msgspec; knows no field."""

import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, defstruct, field

from cluster.errors import InvalidRequest

__all__ = ["UNSET", "Meta", "Struct", "UnsetType", "defstruct", "field"]

T = TypeVar("T")

_PLACE: Final = re.compile(r" - at (?:`key` in )?`\$?\.?(?P<path>[^`]*)`$")
_MISSING: Final = re.compile(r"required field `(?P<name>[^`]*)`")
_MAX_SAID: Final = 300  # letters of what the library says, which may hold a caller's

_encoder = msgspec.json.Encoder()
encode: Final[Callable[[Any], bytes]] = _encoder.encode  # infinities become null
packed: Final[Callable[[Any], bytes]] = msgspec.msgpack.Encoder().encode


def reader(kind: type[T]) -> Callable[[bytes], T]:
    """Returns a function from JSON to this type, which raises InvalidRequest, naming the field. It
    holds the interpreter for up to 10 ms a MiB."""
    decoder = msgspec.json.Decoder(kind)

    def read(data: bytes) -> T:
        try:
            return decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _refusal(error) from error

    return read


def unpacker(kind: type[T]) -> Callable[[bytes], T]:
    """Returns a function that undoes `packed`, for what our own processes have packed."""
    return msgspec.msgpack.Decoder(kind).decode


def schemas(*kinds: type[Any]) -> tuple[tuple[dict[str, Any], ...], dict[str, Any]]:
    """Returns the JSON schemas of these types, and those that they refer to by name."""
    return msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")


def _refusal(error: Exception) -> InvalidRequest:
    if isinstance(error, RecursionError):
        return InvalidRequest("request", "The JSON is nested too deeply: send what is documented.")
    said = str(error)[:_MAX_SAID]
    if not isinstance(error, msgspec.ValidationError):
        return InvalidRequest("request", f"The body is not valid JSON: {said.rstrip('.')}.")
    place, missing = _PLACE.search(said), _MISSING.search(said)
    path = place["path"] if place else ""
    sentence = said[: place.start()] if place else said
    if missing:
        path = f"{path}.{missing['name']}".lstrip(".")
    what = f"'{path}'" if path else "The body"
    return InvalidRequest(path or "request", f"{what} is not as it must be: {sentence}.")
