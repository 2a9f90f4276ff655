"""What `/v1/responses` answers as types, as OpenAI has them: a response, and the events of its
stream. What is UNSET is left out.
"""

from typing import Literal

from router.http.errors import ErrorBody
from router.http.replies import ChatTokenLogprob
from router.http.typed_json import UNSET, Struct, UnsetType, field

ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]


class ResponseText(Struct):
    """A part of a message."""

    text: str
    logprobs: list[ChatTokenLogprob]
    type: Literal["output_text"] = "output_text"
    annotations: tuple[()] = ()
    token_ids: list[int] | UnsetType = UNSET


class ResponseMessage(Struct):
    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[ResponseText]
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"


class InputTokensDetails(Struct):
    cached_tokens: int
    cache_write_tokens: int = 0  # none is paid for


class OutputTokensDetails(Struct):
    reasoning_tokens: int = 0


class ResponseUsage(Struct):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(Struct):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseFailure(Struct):
    message: str
    code: Literal["server_error"] = "server_error"


class NoReasoning(Struct, frozen=True):
    effort: None = None
    summary: None = None


class PlainFormat(Struct, frozen=True):
    type: Literal["text"] = "text"


class PlainText(Struct, frozen=True):
    format: PlainFormat = PlainFormat()


class ResponseReply(Struct, kw_only=True):
    """None of what a caller may say: he has not, and it is the checkpoint's own."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: ResponseStatus = "in_progress"
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    model: str
    output: list[ResponseMessage] = field(default_factory=list)
    usage: ResponseUsage | None = None
    stop_reason: str | int | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    parallel_tool_calls: bool = True
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    temperature: float | None = None
    top_logprobs: int = 0
    top_p: float | None = None
    user: str | None = None
    # The same in all answers.
    background: Literal[False] = False
    previous_response_id: None = None
    reasoning: NoReasoning = NoReasoning()
    service_tier: Literal["default"] = "default"
    store: Literal[False] = False
    text: PlainText = PlainText()
    tool_choice: Literal["auto"] = "auto"
    tools: tuple[()] = ()
    truncation: Literal["disabled"] = "disabled"


# Events. Their numbers are given when they are spelt.


class ResponseEvent(Struct, kw_only=True):
    type: str
    sequence_number: int = 0


class StatusEvent(ResponseEvent, kw_only=True):
    """`response.created`, `.in_progress`, `.completed`, `.incomplete`, `.failed`."""

    response: ResponseReply


class ItemEvent(ResponseEvent, kw_only=True):
    """`response.output_item.added`, `.done`."""

    output_index: int = 0
    item: ResponseMessage


class _PartEvent(ResponseEvent, kw_only=True):
    item_id: str
    output_index: int = 0
    content_index: int = 0


class PartEvent(_PartEvent, kw_only=True):
    """`response.content_part.added`, `.done`."""

    part: ResponseText


class TextDeltaEvent(_PartEvent, kw_only=True):
    type: str = "response.output_text.delta"
    delta: str
    logprobs: list[ChatTokenLogprob]
    token_ids: list[int] | UnsetType = UNSET


class TextDoneEvent(_PartEvent, kw_only=True):
    type: str = "response.output_text.done"
    text: str
    logprobs: list[ChatTokenLogprob]


class ErrorEvent(ResponseEvent, kw_only=True):
    """Says it twice: as it is documented, and where OpenAI's clients look for what to raise."""

    type: str = "error"
    code: str | None
    message: str
    param: str | None
    error: ErrorBody
