"""Encodes what crosses to the process for large texts, and what the client gets: `Tokenize` and
`Detokenize` messages as bytes. To build one of a million ids takes longer than the event loop may.
"""

from collections.abc import Sequence

from penstock.v1 import inference_pb2 as pb
from router.front.prompt import ChatPrompt, Prompt, TextPrompt, chat_prompt


def prompt_to_bytes(prompt: TextPrompt | ChatPrompt) -> bytes:
    match prompt:
        case TextPrompt(text=text, add_special_tokens=add_special_tokens):
            request = pb.TokenizeRequest(text=text, add_special_tokens=add_special_tokens)
        case ChatPrompt(messages=messages, add_generation_prompt=is_open):
            chat = pb.Chat(add_generation_prompt=is_open)
            chat.messages.extend(pb.ChatMessage(role=m.role, content=m.content) for m in messages)
            request = pb.TokenizeRequest(chat=chat)
    return request.SerializeToString()


def prompt_from_bytes(data: bytes, max_text_bytes: int | None) -> Prompt:
    """Reads a prompt that is in bounds."""
    request = pb.TokenizeRequest.FromString(data)
    if request.WhichOneof("prompt") == "chat":
        return chat_prompt(request.chat, max_text_bytes)
    return TextPrompt(text=request.text, add_special_tokens=request.add_special_tokens)


def tokenized_to_bytes(ids: Sequence[int]) -> bytes:
    return pb.TokenizeResponse(token_ids=ids).SerializeToString()


def tokenized_from_bytes(data: bytes) -> Sequence[int]:
    return pb.TokenizeResponse.FromString(data).token_ids


def ids_to_bytes(ids: Sequence[int], *, skip_special_tokens: bool) -> bytes:
    request = pb.DetokenizeRequest(token_ids=ids, skip_special_tokens=skip_special_tokens)
    return request.SerializeToString()


def ids_from_bytes(data: bytes) -> tuple[list[int], bool]:
    request = pb.DetokenizeRequest.FromString(data)
    return list(request.token_ids), request.skip_special_tokens


def text_to_bytes(text: str) -> bytes:
    return pb.DetokenizeResponse(text=text).SerializeToString()
