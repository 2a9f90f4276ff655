"""What a body asks for, whichever kind it is of, and how what kinds share becomes a request of the
contract.
"""

from collections.abc import Callable
from typing import Any, Final

from cluster.errors import InvalidRequest, UnsupportedFeature
from penstock.v1 import inference_pb2 as pb
from router.http.contract import TARGETS, write
from router.http.fields import AskedFields, ContentPart, Refused
from router.http.typed_json import Struct, field

_SEEDS: Final = 1 << 64


class Asked(Struct, frozen=True, kw_only=True):
    """What one body asks for."""

    messages: list[bytes]  # of the contract: a `GenerateRequest` a prompt, or another RPC's one
    request_id: str = ""  # unless a header says it
    is_stream: bool = False
    includes_usage: bool = False
    is_echoed: bool = False  # the prompt stands before the answer
    returns_ids: bool = False
    num_logprobs: int | None = None  # alternatives that are shown
    num_choices: int = 1  # of each prompt
    repeated: dict[str, Any] = field(default_factory=dict)  # of the body, in its answer


def request_of(asked: AskedFields, *, logprobs: int | None) -> pb.GenerateRequest:
    """Writes all that the contract has a field for, but the prompt."""
    values = {name: getattr(asked, name) for name in TARGETS}
    values["logprobs"] = logprobs
    if values["seed"] is not None:
        values["seed"] %= _SEEDS  # OpenAI's have a sign
    if values["session_key"] is None:
        values["session_key"] = asked.prompt_cache_key
    request = pb.GenerateRequest()
    write(request, values)
    return request


def asked_of(
    asked: AskedFields, messages: list[bytes], request: pb.GenerateRequest, **more: Any
) -> Asked:
    options = asked.stream_options
    return Asked(
        messages=messages,
        request_id=request.request_id,
        is_stream=bool(asked.stream),
        includes_usage=bool(options and options.include_usage),
        returns_ids=bool(asked.return_token_ids),
        num_logprobs=request.logprobs.top if request.logprobs.HasField("top") else None,
        num_choices=num_choices(request),
        **more,
    )


def num_choices(request: pb.GenerateRequest) -> int:
    return request.n if request.HasField("n") else 1


def check_refused(asked: AskedFields, refused: Refused) -> None:
    """Raises UnsupportedFeature for a field that says more than what changes nothing."""
    for name, harmless in refused.items():
        if (value := getattr(asked, name)) and value not in harmless:
            raise UnsupportedFeature(name)


def add_message(request: Any, role: str, content: str, place: str) -> None:
    guarded(place, request.chat.messages.add, role=role, content=content)


def joined_parts(
    content: str | list[ContentPart] | None, place: str, kinds: tuple[str, ...]
) -> str:
    """Parts of a text stand on lines of their own, as vLLM has them."""
    if content is None or isinstance(content, str):
        return content or ""
    for index, part in enumerate(content):
        if part.type not in kinds:
            name = f"{place}[{index}].{part.type[:80]}"
            known = "' or '".join(kinds)
            raise UnsupportedFeature(
                name, f"'{name}' is not supported: parts are of type '{known}'."
            )
    return "\n".join(part.text or "" for part in content)


def guarded(field: str, write: Callable[..., Any], *values: Any, **named: Any) -> None:
    """Protobuf refuses what has no place on the wire: a negative id, half a surrogate."""
    try:
        write(*values, **named)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(field, f"'{field}' cannot be taken: {error}.") from error
