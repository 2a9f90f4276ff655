"""The unary calls, described once for both clients: how a request is built, which method
carries it, how the reply is read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from penstock.errors import InvalidRequestError
from penstock.request import Message, assign, build_chat
from penstock.v1 import inference_pb2 as pb

ReplyT = TypeVar("ReplyT")


@dataclass(frozen=True, slots=True)
class UnaryCall(Generic[ReplyT]):
    method: str
    request: Any
    read: Callable[[Any], ReplyT]


def tokenize(
    text: str | None, messages: Sequence[Message] | None, model: str, add_special_tokens: bool
) -> UnaryCall[list[int]]:
    if (text is None) == (messages is None):
        raise InvalidRequestError("Give either text or messages.", metadata={"field": "prompt"})
    request = pb.TokenizeRequest(add_special_tokens=add_special_tokens)
    assign("model", setattr, request, "model", model)
    if text is not None:
        assign("text", setattr, request, "text", text)
    else:
        request.chat.CopyFrom(build_chat(messages or ()))
    return UnaryCall("Tokenize", request, lambda reply: list(reply.token_ids))


def detokenize(token_ids: Sequence[int], model: str, skip_special_tokens: bool) -> UnaryCall[str]:
    request = pb.DetokenizeRequest(skip_special_tokens=skip_special_tokens)
    assign("model", setattr, request, "model", model)
    assign("token_ids", request.token_ids.extend, token_ids)
    return UnaryCall("Detokenize", request, lambda reply: str(reply.text))


def list_models() -> UnaryCall[list[pb.Model]]:
    return UnaryCall("ListModels", pb.ListModelsRequest(), lambda reply: list(reply.models))


def get_model(name: str) -> UnaryCall[pb.Model]:
    request = pb.GetModelRequest()
    assign("model", setattr, request, "model", name)
    return UnaryCall("GetModel", request, lambda reply: reply.model)
