"""The prompt of a request: text, a chat or token ids; its bounds, and how it becomes tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cluster.chat_template import NO_TEMPLATE, ChatTemplate
from cluster.errors import InvalidRequest
from cluster.limits import Limits
from cluster.tokenizer import Tokenizer
from cluster.types import ChatMessage
from penstock.v1 import inference_pb2 as pb
from router.front.model_info import ModelInfo
from router.front.sampling_fields import check_count

_MAX_ROLE_BYTES: Final = 64
_MESSAGE_WEIGHT: Final = 512  # rendering a message takes as long as tokenising so many bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPrompt:
    text: str
    add_special_tokens: bool = True

    @property
    def weight(self) -> int:
        """Bytes of text that take as long to become tokens."""
        return _num_bytes(self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    messages: tuple[ChatMessage, ...]
    add_generation_prompt: bool = True
    max_bytes: int | None = None  # a rendered text that is longer is not worth tokenising

    @property
    def weight(self) -> int:
        num_bytes = sum(_num_bytes(message.content) for message in self.messages)
        return num_bytes + _MESSAGE_WEIGHT * len(self.messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrompt:
    ids: Sequence[int]

    @property
    def weight(self) -> int:
        return len(self.ids) // 4


Prompt = TextPrompt | ChatPrompt | TokenPrompt


def prompt_field(prompt: Prompt) -> str:
    """The request's field that it came from."""
    match prompt:
        case TextPrompt():
            return "text"
        case ChatPrompt():
            return "chat"
        case TokenPrompt():
            return "token_ids.ids"


def prompt_ids(prompt: Prompt, tokenizer: Tokenizer, template: ChatTemplate) -> list[int]:
    """Blocks: call it in a thread."""
    match prompt:
        case TokenPrompt(ids=ids):
            return list(ids)
        case TextPrompt():
            return tokenizer.encode(prompt.text, add_special_tokens=prompt.add_special_tokens)
        case ChatPrompt():
            is_open = prompt.add_generation_prompt
            text = template.render(prompt.messages, add_generation_prompt=is_open)
            _check_worth(_num_bytes(text), "chat", prompt.max_bytes)
            return tokenizer.encode(text, add_special_tokens=False)


def _num_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="replace"))


def _check_worth(num_bytes: int, field: str, max_bytes: int | None) -> None:
    if max_bytes is not None and num_bytes > max_bytes:
        raise InvalidRequest(
            field,
            f"The prompt has {num_bytes} bytes; whatever it says, the model's context holds at "
            f"most {max_bytes}.",
        )


# Bounds


def check_prompt(request: pb.GenerateRequest, info: ModelInfo, limits: Limits) -> Prompt:
    match request.WhichOneof("prompt"):
        case "text":
            if not request.text:
                raise InvalidRequest("text", "The prompt is empty: give at least one character.")
            return check_text(request.text, info, limits)
        case "chat":
            return check_chat(request.chat, info, limits)
        case "token_ids":
            ids = request.token_ids.ids
            check_prompt_tokens(len(ids), info, limits, "token_ids.ids")
            return TokenPrompt(ids=ids)  # each is judged beside the loop: there may be many
    raise InvalidRequest("prompt", "There is no prompt: give 'text', 'chat' or 'token_ids'.")


def check_text(text: str, info: ModelInfo, limits: Limits) -> TextPrompt:
    prompt = TextPrompt(text=text)
    check_text_bytes(prompt.weight, info, limits)
    return prompt


def check_text_bytes(num_bytes: int, info: ModelInfo, limits: Limits) -> None:
    check_prompt_bytes(num_bytes, "text", limits)
    _check_worth(num_bytes, "text", info.max_text_bytes)


def check_chat(chat: pb.Chat, info: ModelInfo, limits: Limits) -> ChatPrompt:
    if not info.has_chat_template:
        raise InvalidRequest("chat", NO_TEMPLATE)
    if not chat.messages:
        raise InvalidRequest("chat.messages", "The chat has no messages: give at least one.")
    check_count(len(chat.messages), limits.max_messages, "chat.messages", "messages")
    check_prompt_bytes(chat.ByteSize(), "chat.messages", limits)
    for position, message in enumerate(chat.messages):
        if not 0 < len(message.role.encode()) <= _MAX_ROLE_BYTES:
            raise InvalidRequest(
                f"chat.messages[{position}].role",
                "A message needs a role, such as 'user', that the chat template knows.",
            )
    return chat_prompt(chat, info.max_text_bytes)


def chat_prompt(chat: pb.Chat, max_bytes: int | None) -> ChatPrompt:
    is_default = not chat.HasField("add_generation_prompt")
    return ChatPrompt(
        messages=tuple(ChatMessage(m.role, m.content) for m in chat.messages),
        add_generation_prompt=is_default or chat.add_generation_prompt,
        max_bytes=max_bytes,
    )


def check_prompt_bytes(num_bytes: int, field: str, limits: Limits) -> None:
    if num_bytes > limits.max_prompt_bytes:
        raise InvalidRequest(
            field,
            f"The prompt has {num_bytes} bytes; at most {limits.max_prompt_bytes} are allowed.",
        )


def check_prompt_tokens(num_tokens: int, info: ModelInfo, limits: Limits, field: str) -> None:
    if num_tokens == 0:
        raise InvalidRequest(field, "The prompt has no tokens: give at least one.")
    if num_tokens >= info.context_length:
        raise InvalidRequest(
            field,
            f"The prompt has {num_tokens} tokens; the model has a context of "
            f"{info.context_length}, of which the answer needs at least one.",
        )
    if limits.max_prompt_tokens is not None and num_tokens > limits.max_prompt_tokens:
        raise InvalidRequest(
            field,
            f"The prompt has {num_tokens} tokens; at most {limits.max_prompt_tokens} are allowed.",
        )
