"""Reads the body of a request: JSON in, requests of the contract out, ready for the pipeline that
checks them. Runs in the router's loop where the body is small, else in the process for large texts.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

from cluster.errors import InvalidRequest, UnsupportedFeature
from penstock.v1 import inference_pb2 as pb
from router.http.asked import (
    Asked,
    add_message,
    asked_of,
    check_refused,
    guarded,
    joined_parts,
    num_choices,
    request_of,
)
from router.http.contract import write
from router.http.fields import (
    REFUSED_IN_CHAT,
    REFUSED_IN_COMPLETIONS,
    REFUSED_IN_MESSAGES,
    ChatFields,
    ChatRequest,
    CompletionRequest,
    DetokenizeFields,
    Message,
    TokenizeFields,
)
from router.http.response_reading import read_response
from router.http.typed_json import packed, reader, unpacker

DEFAULT_COMPLETION_TOKENS: Final = 16  # as OpenAI's; a chat has what there is room for
MAX_PROMPTS: Final = 128  # of one completion: each is a request of its own


class BodyKind(StrEnum):
    CHAT = "chat"
    COMPLETION = "completion"
    TOKENIZE = "tokenize"
    DETOKENIZE = "detokenize"
    RESPONSE = "response"


def read_body(kind: BodyKind, body: bytes) -> Asked:
    """Raises InvalidRequest and UnsupportedFeature."""
    return _READERS[kind](body)


def packed_asked(kind: BodyKind, body: bytes) -> bytes:
    """The same, for another process."""
    return packed(read_body(kind, body))


unpacked_asked = unpacker(Asked)


def _read_chat(body: bytes) -> Asked:
    asked = _CHATS(body)
    check_refused(asked, REFUSED_IN_CHAT)
    request = request_of(asked, logprobs=_chat_logprobs(asked))
    if asked.max_completion_tokens is not None:
        write(request, {"max_tokens": asked.max_completion_tokens})
    _set_chat(request, asked.messages, is_open=asked.add_generation_prompt)
    return asked_of(asked, [request.SerializeToString()], request)


def _chat_logprobs(asked: ChatFields) -> int | None:
    if asked.logprobs:
        return asked.top_logprobs or 0
    if asked.top_logprobs:
        raise InvalidRequest("top_logprobs", "'top_logprobs' is given: say 'logprobs: true', too.")
    return None


def _read_completion(body: bytes) -> Asked:
    asked = _COMPLETIONS(body)
    check_refused(asked, REFUSED_IN_COMPLETIONS)
    logprobs = getattr(asked, "logprobs", None)
    request = request_of(asked, logprobs=logprobs)
    if asked.best_of not in (None, num_choices(request)):
        raise UnsupportedFeature("best_of", "'best_of' is not supported: give what 'n' is.")
    if not request.stop.HasField("max_tokens"):
        request.stop.max_tokens = DEFAULT_COMPLETION_TOKENS
    if asked.echo and logprobs is not None:
        request.logprobs.prompt_top = logprobs
    prompts = _prompts(asked.prompt)
    messages = [_with_prompt(request, index, prompt) for index, prompt in enumerate(prompts)]
    return asked_of(asked, messages, request, is_echoed=bool(asked.echo))


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
    guarded(f"prompt[{index}]", _set_prompt, request, prompt)
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
    guarded("tokens", request.token_ids.extend, asked.tokens)
    if asked.skip_special_tokens is not None:
        request.skip_special_tokens = asked.skip_special_tokens
    return Asked(messages=[request.SerializeToString()])


def _set_chat(request: Any, messages: Sequence[Message], *, is_open: bool | None) -> None:
    request.chat.SetInParent()
    for index, message in enumerate(messages):
        place = f"messages[{index}]"
        for name in REFUSED_IN_MESSAGES:
            if getattr(message, name):
                raise UnsupportedFeature(f"{place}.{name}")
        content = joined_parts(message.content, f"{place}.content", ("text",))
        add_message(request, message.role, content, place)
    if is_open is not None:
        request.chat.add_generation_prompt = is_open


_CHATS: Final = reader(ChatRequest)
_COMPLETIONS: Final = reader(CompletionRequest)
_TOKENIZES: Final = reader(TokenizeFields)
_DETOKENIZES: Final = reader(DetokenizeFields)
_READERS: Final[Mapping[BodyKind, Callable[[bytes], Asked]]] = {
    BodyKind.CHAT: _read_chat,
    BodyKind.COMPLETION: _read_completion,
    BodyKind.TOKENIZE: _read_tokenize,
    BodyKind.DETOKENIZE: _read_detokenize,
    BodyKind.RESPONSE: read_response,
}
