"""Turns the arguments of `generate` into the wire's request. Both clients use it."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from google.protobuf.duration_pb2 import Duration

from penstock.errors import InvalidRequestError
from penstock.v1 import inference_pb2 as pb

Message = Mapping[str, str] | tuple[str, str]  # {"role": ..., "content": ...} or (role, content)


class GenerateOptions(TypedDict, total=False):
    """What `generate` takes beside the prompt. Left out: the server's default."""

    messages: Sequence[Message]
    token_ids: Sequence[int]
    model: str
    request_id: str
    # sampling
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    frequency_penalty: float
    presence_penalty: float
    repetition_penalty: float
    seed: int
    logit_bias: Mapping[int, float]
    allowed_token_ids: Sequence[int]
    bad_token_ids: Sequence[int]
    # length and stop
    max_tokens: int
    min_tokens: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    include_stop_string: bool
    ignore_eos: bool
    skip_special_tokens: bool
    # the rest
    logprobs: int
    prompt_logprobs: int
    n: int
    priority: int
    cache_scope: str
    service_class: str  # of the routing policy: "interactive", say
    session_key: str  # of a conversation, for instance: its requests share a prefix
    ttft_budget: float  # seconds to the first token, and between two: they narrow
    itl_budget: float  # the targets of the class
    timeout: float  # seconds for everything, retries and waiting for a server that is away
    # included; what is left of it travels with each attempt


SAMPLING = ["temperature", "top_k", "top_p", "min_p", "seed"]
PENALTIES = ["frequency_penalty", "presence_penalty", "repetition_penalty"]
SAMPLING_LISTS = ("allowed_token_ids", "bad_token_ids")
STOP = ["max_tokens", "min_tokens", "include_stop_string", "ignore_eos", "skip_special_tokens"]
PLAIN = ["model", "request_id", "n", "priority", "cache_scope", "service_class", "session_key"]
BUDGETS = ("ttft_budget", "itl_budget")


def build_request(prompt: str | None, options: GenerateOptions) -> pb.GenerateRequest:
    """Raises InvalidRequestError for what cannot be written as a request at all; everything
    else is the server's to judge."""
    values = {name: value for name, value in options.items() if value is not None}
    values.pop("timeout", None)
    request = pb.GenerateRequest(request_id=uuid.uuid4().hex)
    _set_prompt(request, prompt, values)
    for target, names in (
        (request.sampling, SAMPLING + PENALTIES),
        (request.stop, STOP),
        (request, PLAIN),
    ):
        for name in names:
            if name in values:
                assign(name, setattr, target, name, values.pop(name))
    for name in SAMPLING_LISTS:
        _extend(name, getattr(request.sampling, name), values.pop(name, ()))
    assign("logit_bias", request.sampling.logit_bias.update, values.pop("logit_bias", {}))
    _extend("stop_token_ids", request.stop.stop_token_ids, values.pop("stop_token_ids", ()))
    stop = values.pop("stop", ())
    _extend("stop", request.stop.stop_strings, [stop] if isinstance(stop, str) else stop)
    for name, field in (("logprobs", "top"), ("prompt_logprobs", "prompt_top")):
        if name in values:
            assign(name, setattr, request.logprobs, field, values.pop(name))
    for name in BUDGETS:
        if name in values:
            assign(name, _set_seconds, getattr(request, name), values.pop(name))
    if values:
        raise InvalidRequestError(
            f"There is no option '{min(values)}'.", metadata={"field": min(values)}
        )
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


def _set_seconds(duration: Duration, seconds: float) -> None:
    duration.SetInParent()
    duration.FromNanoseconds(round(seconds * 1e9))


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
