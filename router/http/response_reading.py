"""Reads the body of `/v1/responses`: its input and instructions are the messages of a chat."""

from collections.abc import Mapping
from typing import Any, Final

from cluster.errors import InvalidRequest, UnsupportedFeature
from penstock.v1 import inference_pb2 as pb
from router.http.asked import (
    Asked,
    add_message,
    asked_of,
    check_refused,
    joined_parts,
    num_choices,
    request_of,
)
from router.http.contract import write
from router.http.response_fields import (
    INCLUDED,
    LOGPROBS,
    REFUSED_IN_RESPONSES,
    ResponseFields,
    ResponseItem,
    ResponseRequest,
    ResponseTextFields,
)
from router.http.typed_json import reader

# A role -> what chat templates call it: few know a developer, whose word is the system's.
_ROLES: Final[Mapping[str | None, str]] = {
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
}
_PARTS: Final = ("input_text", "output_text")
_VERBOSITY: Final = (None, "medium")
_REPEATED: Final = (
    "instructions",
    "max_output_tokens",
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "safety_identifier",
    "temperature",
    "top_logprobs",
    "top_p",
    "user",
)


def read_response(body: bytes) -> Asked:
    """Raises InvalidRequest and UnsupportedFeature."""
    asked = _RESPONSES(body)
    check_refused(asked, REFUSED_IN_RESPONSES)
    _check_text(asked.text)
    request = request_of(asked, logprobs=_logprobs(asked))
    if num_choices(request) > 1:
        raise UnsupportedFeature("n", "'n' is not supported here: a response is one answer.")
    if asked.max_output_tokens is not None:
        write(request, {"max_tokens": asked.max_output_tokens})
    _set_messages(request, asked)
    said = {name: getattr(asked, name) for name in _REPEATED}
    repeated = {name: value for name, value in said.items() if value is not None}
    return asked_of(asked, [request.SerializeToString()], request, repeated=repeated)


def _check_text(text: ResponseTextFields | None) -> None:
    if text is None:
        return
    if text.format and text.format != {"type": "text"}:
        raise UnsupportedFeature(
            "text.format", "'text.format' is not supported: an answer is of type 'text'."
        )
    if text.verbosity not in _VERBOSITY:
        raise UnsupportedFeature("text.verbosity")


def _logprobs(asked: ResponseFields) -> int | None:
    included = asked.include or []
    for index, name in enumerate(included):
        if name not in INCLUDED:
            known = ", ".join(INCLUDED)
            raise InvalidRequest(f"include[{index}]", f"'include' may have one of: {known}.")
    return asked.top_logprobs or (0 if LOGPROBS in included else None)


def _set_messages(request: pb.GenerateRequest, asked: ResponseFields) -> None:
    if asked.instructions is not None:
        add_message(request, "system", asked.instructions, "instructions")
    if isinstance(asked.input, str):
        add_message(request, "user", asked.input, "input")
        return
    if not asked.input:
        raise InvalidRequest("input", "'input' is empty: give a text or a message.")
    for index, item in enumerate(asked.input):
        _add_item(request, item, f"input[{index}]")


def _add_item(request: Any, item: ResponseItem, place: str) -> None:
    if item.type != "message":
        name = f"{place}.{item.type[:80]}"
        raise UnsupportedFeature(name, f"'{name}' is not supported: items are of type 'message'.")
    role = _ROLES.get(item.role)
    if role is None:
        known = ", ".join(str(each) for each in _ROLES)
        raise InvalidRequest(f"{place}.role", f"'{place}.role' must be one of: {known}.")
    add_message(request, role, joined_parts(item.content, f"{place}.content", _PARTS), place)


_RESPONSES: Final = reader(ResponseRequest)
