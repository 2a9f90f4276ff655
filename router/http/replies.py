"""The bodies of answers as types, as OpenAI has them. What is UNSET is left out."""

from typing import Literal

from router.http.typed_json import UNSET, Struct, UnsetType

FinishReasonText = Literal["stop", "length"]


class PromptTokensDetails(Struct):
    cached_tokens: int


class UsageReply(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class ChatTopLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[ChatTopLogprob]


class ChatLogprobs(Struct):
    content: list[ChatTokenLogprob]
    refusal: None = None


class TextLogprobs(Struct):
    """Of tokens, in order. None: the first of a prompt has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class AssistantMessage(Struct):
    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatDelta(Struct):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChunkChoice(Struct):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReasonText | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChoice(Struct):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReasonText
    stop_reason: str | int | None
    token_ids: list[int] | UnsetType = UNSET


class TextChoice(Struct):
    """Of an answer and of a part of one."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: FinishReasonText | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class _Reply(Struct, kw_only=True):
    id: str
    created: int
    model: str
    system_fingerprint: str


class ChatReply(_Reply, kw_only=True):
    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: UsageReply


class ChatChunk(_Reply, kw_only=True):
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]
    usage: UsageReply | UnsetType | None = UNSET


class TextReply(_Reply, kw_only=True):
    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]
    usage: UsageReply | UnsetType | None = UNSET


class ModelCard(Struct, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "penstock"
    max_model_len: int


class ModelList(Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class TokenizeReply(Struct):
    count: int
    max_model_len: int
    tokens: list[int]


class DetokenizeReply(Struct):
    prompt: str


class VersionReply(Struct):
    version: str


class StateReply(Struct):
    status: str
    reason: str | UnsetType = UNSET
