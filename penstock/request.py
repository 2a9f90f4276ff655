"""Turns the arguments of `generate` into the wire's request. Both clients use it."""

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from penstock.errors import InvalidRequestError
from penstock.request_fields import RequestFields
from penstock.v1 import inference_pb2 as pb

Message = Mapping[str, str] | tuple[str, str]  # {"role": ..., "content": ...} or (role, content)


class GenerateOptions(RequestFields, total=False):
    """What `generate` takes beside the prompt. Left out: the server's default."""

    messages: Sequence[Message]
    token_ids: Sequence[int]
    timeout: float  # seconds for everything, retries and waiting for a server that is away
    # included; what is left of it travels with each attempt


class _Target(NamedTuple):
    part: str  # of the request; empty: the request itself
    field: str
    write: Callable[[Any, str, Any], None]


def build_request(prompt: str | None, options: GenerateOptions) -> pb.GenerateRequest:
    """Raises InvalidRequestError for what cannot be written as a request at all; everything
    else is the server's to judge."""
    values = {name: value for name, value in options.items() if value is not None}
    values.pop("timeout", None)
    request = pb.GenerateRequest(request_id=uuid.uuid4().hex)
    _set_prompt(request, prompt, values)
    for name, value in values.items():
        if name not in RequestFields.__annotations__:
            raise InvalidRequestError(f"There is no option '{name}'.", metadata={"field": name})
        part, field, write = _TARGETS[name]
        assign(name, write, getattr(request, part) if part else request, field, value)
    return request


def build_chat(messages: Iterable[Message]) -> pb.Chat:
    chat = pb.Chat()
    for message in messages:
        role, content = (
            (message.get("role", ""), message.get("content", ""))
            if isinstance(message, Mapping)
            else message
        )
        assign("messages", chat.messages.add, role=role, content=content)
    return chat


def _set_prompt(request: pb.GenerateRequest, prompt: str | None, values: dict[str, Any]) -> None:
    messages, token_ids = values.pop("messages", None), values.pop("token_ids", None)
    given = [kind for kind in (prompt, messages, token_ids) if kind is not None]
    if len(given) != 1:
        raise InvalidRequestError(
            "Give exactly one of a prompt, messages and token_ids.", metadata={"field": "prompt"}
        )
    if prompt is not None:
        assign("prompt", setattr, request, "text", prompt)
    elif messages is not None:
        request.chat.CopyFrom(build_chat(messages))
    else:
        request.token_ids.SetInParent()
        _extend("token_ids", request.token_ids.ids, token_ids)


def _extend(field: str, target: Any, values: Any) -> None:
    assign(field, target.extend, values)


def assign(field: str, write: Any, /, *values: Any, **named: Any) -> None:
    """Protobuf refuses what has no place on the wire: a negative count, half a surrogate."""
    try:
        write(*values, **named)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequestError(
            f"'{field}' cannot be sent: {error}", metadata={"field": field}
        ) from error


# Where each option goes: the contract says so.


def _targets(message: Any, part: str = "") -> Iterator[tuple[str, _Target]]:
    for field in message.fields:
        if not part and field.name in ("sampling", "stop", "logprobs"):
            yield from _targets(field.message_type, field.name)
        else:
            rules: pb.FieldRules = field.GetOptions().Extensions[_RULES]
            yield rules.keyword or field.name, _Target(part, field.name, _write(field))


def _write(field: Any) -> Callable[[Any, str, Any], None]:
    message = field.message_type
    if message is None:
        return _set_repeated if field.is_repeated else setattr
    return _set_seconds if message.name == "Duration" else _set_map


def _set_repeated(message: Any, field: str, values: Any) -> None:
    getattr(message, field).extend([values] if isinstance(values, str) else values)


def _set_map(message: Any, field: str, values: Any) -> None:
    getattr(message, field).update(values)


def _set_seconds(message: Any, field: str, seconds: float) -> None:
    getattr(message, field).FromNanoseconds(round(seconds * 1e9))


_RULES: Any = pb.rules
_TARGETS: Final = dict(_targets(pb.GenerateRequest.DESCRIPTOR))
