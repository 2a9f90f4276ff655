"""Reads the body of a request: JSON in, requests of the contract out, ready for the pipeline that
checks them. Runs in the router's loop where the body is small, else in the process for large texts.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

from cluster.errors import InvalidRequest, UnsupportedFeature
from penstock.v1 import inference_pb2 as pb
from router.http.contract import TARGETS, write
from router.http.fields import (
    REFUSED_IN_CHAT,
    REFUSED_IN_COMPLETIONS,
    REFUSED_IN_MESSAGES,
    AskedFields,
    ChatFields,
    ChatRequest,
    CompletionRequest,
    ContentPart,
    DetokenizeFields,
    Message,
    Refused,
    TokenizeFields,
)
from router.http.typed_json import Struct, packed, reader, unpacker

DEFAULT_COMPLETION_TOKENS: Final = 16  # as OpenAI's; a chat has what there is room for
MAX_PROMPTS: Final = 128  # of one completion: each is a request of its own
_SEEDS: Final = 1 << 64


class BodyKind(StrEnum):
    CHAT = "chat"
    COMPLETION = "completion"
    TOKENIZE = "tokenize"
    DETOKENIZE = "detokenize"


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


def read_body(kind: BodyKind, body: bytes) -> Asked:
    """Raises InvalidRequest and UnsupportedFeature."""
    return _READERS[kind](body)


def packed_asked(kind: BodyKind, body: bytes) -> bytes:
    """The same, for another process."""
    return packed(read_body(kind, body))


unpacked_asked = unpacker(Asked)


def _read_chat(body: bytes) -> Asked:
    asked = _CHATS(body)
    _check_refused(asked, REFUSED_IN_CHAT)
    request = _request(asked, logprobs=_chat_logprobs(asked))
    if asked.max_completion_tokens is not None:
        write(request, {"max_tokens": asked.max_completion_tokens})
    _set_chat(request, asked.messages, is_open=asked.add_generation_prompt)
    return _asked(asked, [request.SerializeToString()], request)


def _chat_logprobs(asked: ChatFields) -> int | None:
    if asked.logprobs:
        return asked.top_logprobs or 0
    if asked.top_logprobs:
        raise InvalidRequest("top_logprobs", "'top_logprobs' is given: say 'logprobs: true', too.")
    return None


def _read_completion(body: bytes) -> Asked:
    asked = _COMPLETIONS(body)
    _check_refused(asked, REFUSED_IN_COMPLETIONS)
    logprobs = getattr(asked, "logprobs", None)
    request = _request(asked, logprobs=logprobs)
    num_choices = request.n if request.HasField("n") else 1
    if asked.best_of not in (None, num_choices):
        raise UnsupportedFeature("best_of", "'best_of' is not supported: give what 'n' is.")
    if not request.stop.HasField("max_tokens"):
        request.stop.max_tokens = DEFAULT_COMPLETION_TOKENS
    if asked.echo and logprobs is not None:
        request.logprobs.prompt_top = logprobs
    prompts = _prompts(asked.prompt)
    messages = [_with_prompt(request, index, prompt) for index, prompt in enumerate(prompts)]
    return _asked(asked, messages, request, is_echoed=bool(asked.echo))


def _prompts(prompt: str | list[str | int | list[int]]) -> Sequence[str | list[int]]:
    """One text, texts, one list of ids, or lists of ids."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequest("prompt", "'prompt' is empty: give a text or token ids.")
    kinds = {type(each) for each in prompt}
    if len(kinds) > 1:
        raise InvalidRequest("prompt", "'prompt' mixes texts and ids: give one kind of them.")
    if int in kinds:
        return [prompt]  # type: ignore[list-item]
    if len(prompt) > MAX_PROMPTS:
        raise InvalidRequest(
            "prompt", f"{len(prompt)} prompts were given; at most {MAX_PROMPTS} are allowed."
        )
    return prompt  # type: ignore[return-value]


def _with_prompt(request: pb.GenerateRequest, index: int, prompt: str | list[int]) -> bytes:
    _guarded(f"prompt[{index}]", _set_prompt, request, prompt)
    return request.SerializeToString()


def _set_prompt(request: pb.GenerateRequest, prompt: str | list[int]) -> None:
    if isinstance(prompt, str):
        request.text = prompt
    else:
        request.token_ids.ids[:] = prompt
        request.token_ids.SetInParent()


def _read_tokenize(body: bytes) -> Asked:
    asked = _TOKENIZES(body)
    if (asked.prompt is None) == (asked.messages is None):
        raise InvalidRequest("prompt", "Give one of 'prompt' and 'messages'.")
    request = pb.TokenizeRequest(model=asked.model)
    if asked.messages is not None:
        _set_chat(request, asked.messages, is_open=asked.add_generation_prompt)
    else:
        request.text = asked.prompt or ""
        if asked.add_special_tokens is not None:
            request.add_special_tokens = asked.add_special_tokens
    return Asked(messages=[request.SerializeToString()])


def _read_detokenize(body: bytes) -> Asked:
    asked = _DETOKENIZES(body)
    request = pb.DetokenizeRequest(model=asked.model)
    _guarded("tokens", request.token_ids.extend, asked.tokens)
    if asked.skip_special_tokens is not None:
        request.skip_special_tokens = asked.skip_special_tokens
    return Asked(messages=[request.SerializeToString()])


# Shared


def _request(asked: AskedFields, *, logprobs: int | None) -> pb.GenerateRequest:
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


def _asked(
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
        num_choices=request.n if request.HasField("n") else 1,
        **more,
    )


def _check_refused(asked: AskedFields, refused: Refused) -> None:
    for name, harmless in refused.items():
        if (value := getattr(asked, name)) and value not in harmless:
            raise UnsupportedFeature(name)


def _set_chat(request: Any, messages: Sequence[Message], *, is_open: bool | None) -> None:
    request.chat.SetInParent()
    for index, message in enumerate(messages):
        for name in REFUSED_IN_MESSAGES:
            if getattr(message, name):
                raise UnsupportedFeature(f"messages[{index}].{name}")
        content = _content(message.content, f"messages[{index}].content")
        place = f"messages[{index}]"
        _guarded(place, request.chat.messages.add, role=message.role, content=content)
    if is_open is not None:
        request.chat.add_generation_prompt = is_open


def _content(content: str | list[ContentPart] | None, place: str) -> str:
    """Parts of a text stand on lines of their own, as vLLM has them."""
    if content is None or isinstance(content, str):
        return content or ""
    for index, part in enumerate(content):
        if part.type != "text":
            name = f"{place}[{index}].{part.type[:80]}"
            raise UnsupportedFeature(name, f"'{name}' is not supported: parts are of type 'text'.")
    return "\n".join(part.text or "" for part in content)


def _guarded(field: str, write: Callable[..., Any], *values: Any, **named: Any) -> None:
    """Protobuf refuses what has no place on the wire: a negative id, half a surrogate."""
    try:
        write(*values, **named)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(field, f"'{field}' cannot be taken: {error}.") from error


_CHATS: Final = reader(ChatRequest)
_COMPLETIONS: Final = reader(CompletionRequest)
_TOKENIZES: Final = reader(TokenizeFields)
_DETOKENIZES: Final = reader(DetokenizeFields)
_READERS: Final[Mapping[BodyKind, Callable[[bytes], Asked]]] = {
    BodyKind.CHAT: _read_chat,
    BodyKind.COMPLETION: _read_completion,
    BodyKind.TOKENIZE: _read_tokenize,
    BodyKind.DETOKENIZE: _read_detokenize,
}
