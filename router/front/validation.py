"""Turns the bytes of a `GenerateRequest` into a request whose every value is in bounds.

Three steps, because the middle one is slow and belongs in a thread: `check_generate` (bounds
that need no tokens), `prompt_ids` (tokenises), `resolve` (bounds that need the tokens).
Knows no worker and no transport.
"""

import re
import secrets
import uuid
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from cluster.errors import InvalidRequest, UnknownModel, UnsupportedFeature
from cluster.limits import Limits
from cluster.tokenizer import Tokenizer
from cluster.types import ComputeRequest, GenerationParams, LostAnswer, RoutingHints, SamplingParams
from penstock.v1 import inference_pb2 as pb
from router.callers.key_file import ANYBODY, ApiKey
from router.front.bad_words import bad_word_ids, check_bad_words
from router.front.field_rules import check_supported, plain_rules, plain_values
from router.front.model_info import ModelInfo
from router.front.prompt import (
    Prompt,
    check_chat,
    check_prompt,
    check_prompt_tokens,
    check_text,
    prompt_field,
)
from router.front.routing_fields import routing_hints
from router.front.sampling_fields import (
    check_count,
    check_ids,
    check_something_is_left,
    check_texts,
    sampling_params,
)

_PLAIN: Final = plain_rules(GenerationParams)
_MAX_NAMED_BYTES: Final = 64 << 10

_SECRET_BYTES: Final = 16
_MAX_WORKER_CHARS: Final = 256
_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]+")


def new_secret() -> bytes:
    """Draws what lets its holder go on with an answer."""
    return secrets.token_bytes(_SECRET_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationInput:
    """A request that is in bounds as far as can be said without its tokens."""

    request_id: str
    tenant: str
    prompt: Prompt
    cache_scope: str
    params: GenerationParams  # max_tokens of 0: what there is room for
    bad_words: tuple[str, ...]  # not among the parameters yet
    hints: RoutingHints
    # Who knows it may go on with the answer when its stream is lost.
    resume_secret: bytes = field(repr=False)


# Before tokenising


def check_generate(
    request: pb.GenerateRequest,
    info: ModelInfo,
    limits: Limits,
    key: ApiKey = ANYBODY,
    resume_secret: bytes = b"",
) -> GenerationInput:
    """`key`: of who asks. A secret is drawn where he was told none yet."""
    check_model(request.model, info)
    check_supported(request)
    _check_no_unknown_fields(request)
    stop = request.stop
    max_tokens = stop.max_tokens if stop.HasField("max_tokens") else None
    _check_length(stop, max_tokens, info, limits)
    return GenerationInput(
        request_id=check_request_id(request.request_id, limits),
        tenant=key.tenant,
        prompt=check_prompt(request, info, limits),
        cache_scope=_cache_scope(request.cache_scope, limits.max_cache_scope_chars),
        resume_secret=resume_secret or new_secret(),
        params=GenerationParams(
            sampling=sampling_params(request, info, limits),
            max_tokens=max_tokens or 0,
            stop_strings=_stop_strings(stop.stop_strings, limits),
            num_choices=_num_choices(request, limits.max_n),
            **plain_values(request, _PLAIN),
        ),
        bad_words=check_bad_words(request.sampling.bad_words, limits),
        hints=routing_hints(request, limits, key.service_class),
    )


def check_model(model: str, info: ModelInfo) -> None:
    """Empty means the only one."""
    if model not in ("", info.name):
        raise UnknownModel(model, info.name)


def check_attach(request: pb.AttachRequest, limits: Limits) -> LostAnswer:
    """Checks that it may be asked for. Whether the secret is right is the worker's to say."""
    if not request.request_id:
        raise InvalidRequest("request_id", "Say which request's answer goes on: its id.")
    check_request_id(request.request_id, limits)
    if len(request.resume_secret) != _SECRET_BYTES:
        raise InvalidRequest(
            "resume_secret", f"It has {_SECRET_BYTES} bytes: send it as 'accepted' brought it."
        )
    if not 1 <= len(request.next_index) <= limits.max_n:
        raise InvalidRequest(
            "next_index", f"Say of each choice, 1 to {limits.max_n}, how many tokens are there."
        )
    if len(request.decode_worker) > _MAX_WORKER_CHARS:
        raise InvalidRequest("decode_worker", "Send it as 'accepted' brought it.")
    return LostAnswer(
        request_id=request.request_id,
        resume_secret=request.resume_secret,
        next_index=tuple(request.next_index),
        worker=request.decode_worker,
        epoch=request.epoch,
    )


def check_tokenize(request: pb.TokenizeRequest, info: ModelInfo, limits: Limits) -> Prompt:
    check_model(request.model, info)
    _check_no_unknown_fields(request)
    if request.WhichOneof("prompt") == "chat":
        return check_chat(request.chat, info, limits)
    if request.WhichOneof("prompt") is None:
        raise InvalidRequest("prompt", "There is nothing to tokenise: give 'text' or 'chat'.")
    prompt = check_text(request.text, info, limits)
    is_default = not request.HasField("add_special_tokens")
    return replace(prompt, add_special_tokens=is_default or request.add_special_tokens)


def check_detokenize(
    request: pb.DetokenizeRequest, info: ModelInfo, limits: Limits
) -> Sequence[int]:
    """Takes as many ids as the model's context holds; `Tokenizer.decode` judges each."""
    check_model(request.model, info)
    most = min(info.context_length, limits.max_prompt_bytes)
    check_count(len(request.token_ids), most, "token_ids", "token ids")
    _check_no_unknown_fields(request)
    return request.token_ids


def _check_no_unknown_fields(request: Message) -> None:
    """A newer client's field, which would otherwise be ignored."""
    num_bytes = request.ByteSize()
    name = _unknown_field(request) if num_bytes <= _MAX_NAMED_BYTES else "a field"
    request.DiscardUnknownFields()
    if request.ByteSize() != num_bytes:
        raise UnsupportedFeature(
            name,
            f"This server does not know {name}: it is older than the client; leave it out.",
        )


def _unknown_field(request: Message) -> str:
    """One of them; in time that grows with their number, of which a large message has millions."""
    unknown_fields: Any = UnknownFieldSet(request)
    for unknown in unknown_fields:
        return f"field {unknown.field_number} of {request.DESCRIPTOR.name}"
    return "a nested field"


def check_request_id(request_id: str, limits: Limits) -> str:
    """The same, or a new one where there is none. Raises InvalidRequest."""
    if not request_id:
        return uuid.uuid4().hex
    max_chars = limits.max_request_id_chars
    if len(request_id) > max_chars or not _REQUEST_ID.fullmatch(request_id):
        raise InvalidRequest(
            "request_id",
            f"A request id has at most {max_chars} printable ASCII characters, without spaces.",
        )
    return request_id


def _cache_scope(cache_scope: str, max_chars: int) -> str:
    if len(cache_scope) > max_chars or not cache_scope.isprintable():
        raise InvalidRequest(
            "cache_scope", f"A cache scope has at most {max_chars} printable characters."
        )
    return cache_scope


def _num_choices(request: pb.GenerateRequest, max_n: int) -> int:
    num = request.n if request.HasField("n") else 1
    if not 1 <= num <= max_n:
        raise InvalidRequest("n", f"n is {num}; it must lie between 1 and {max_n}.")
    return num


def _stop_strings(strings: Sequence[str], limits: Limits) -> tuple[str, ...]:
    most, max_bytes = limits.max_stop_strings, limits.max_stop_string_bytes
    check_texts(strings, "stop.stop_strings", "stop string", most, max_bytes)
    return tuple(dict.fromkeys(strings))


def _check_length(
    stop: pb.LengthAndStop, max_tokens: int | None, info: ModelInfo, limits: Limits
) -> None:
    most = min(info.context_length - 1, limits.max_output_tokens or info.context_length)
    if max_tokens == 0:
        raise InvalidRequest("stop.max_tokens", "max_tokens is 0; ask for at least 1.")
    if max_tokens is not None and max_tokens > most:
        raise InvalidRequest(
            "stop.max_tokens",
            f"max_tokens is {max_tokens}; the model has a context of {info.context_length} "
            f"tokens, and an answer at most {most}.",
        )
    if stop.min_tokens > (most if max_tokens is None else max_tokens):
        raise InvalidRequest(
            "stop.min_tokens",
            f"min_tokens is {stop.min_tokens}, more than the {max_tokens or most} tokens that "
            "the answer may have.",
        )


# After tokenising


def resolve(
    given: GenerationInput,
    prompt_ids: Sequence[int],
    tokenizer: Tokenizer,
    info: ModelInfo,
    limits: Limits,
    *,
    hash_key: bytes,
) -> ComputeRequest:
    """The last bounds, how long the answer may be, and what is tokenised beside the prompt."""
    num_prompt = len(prompt_ids)
    field = prompt_field(given.prompt)
    check_prompt_tokens(num_prompt, info, limits, field)
    ids = prompt_ids if isinstance(prompt_ids, list) else array("I", prompt_ids)
    check_ids(ids, field, info.vocab_size)
    return ComputeRequest(
        request_id=given.request_id,
        prompt_ids=ids,
        params=replace(
            given.params,
            sampling=_with_bad_words(given, tokenizer, info),
            max_tokens=_max_tokens(given.params, num_prompt, info, limits),
        ),
        hash_key=hash_key,
    )


def _with_bad_words(
    given: GenerationInput, tokenizer: Tokenizer, info: ModelInfo
) -> SamplingParams:
    sampling = given.params.sampling
    if not given.bad_words:
        return sampling
    ids = bad_word_ids(given.bad_words, tokenizer, info.vocab_size)
    sampling = replace(sampling, bad_word_ids=ids)
    check_something_is_left(sampling, info.vocab_size)
    return sampling


def _max_tokens(given: GenerationParams, num_prompt: int, info: ModelInfo, limits: Limits) -> int:
    room = info.context_length - num_prompt
    if given.max_tokens:
        if given.max_tokens > room:
            raise InvalidRequest(
                "stop.max_tokens",
                f"The prompt has {num_prompt} tokens and max_tokens is {given.max_tokens}; "
                f"together they exceed the model's context of {info.context_length}. Ask for at "
                f"most {room}.",
            )
        return given.max_tokens
    most = min(room, limits.max_output_tokens or room)
    if (own := info.defaults.max_tokens(num_prompt)) is not None:
        if own < 1:
            raise InvalidRequest(
                "stop.max_tokens",
                f"The prompt has {num_prompt} tokens, and the model's generation config ends "
                f"texts at {info.defaults.max_length}: say how long the answer may be.",
            )
        most = min(most, own)
    if given.sampling.min_tokens > most:
        raise InvalidRequest(
            "stop.min_tokens",
            f"min_tokens is {given.sampling.min_tokens}; after a prompt of {num_prompt} tokens "
            f"the answer has room for {most}.",
        )
    return most
