"""The body of `/v1/responses` as a type: what OpenAI has there beside the contract, and what of it
is known and refused.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final

from router.http.fields import REFUSED, AskedFields, ContentPart, Refused, with_contract
from router.http.typed_json import Meta, Struct

_NO_REASONING: Final = ({"effort": "none"}, {"effort": None}, {"effort": None, "summary": None})
REFUSED_IN_RESPONSES: Final[Refused] = {
    **REFUSED,
    "previous_response_id": (),
    "conversation": (),
    "background": (),
    "prompt": (),  # a template that is kept somewhere
    "tools": (),
    "tool_choice": ("none", "auto"),
    "reasoning": _NO_REASONING,
    "truncation": ("disabled",),
    "context_management": (),
    "moderation": (),
    "modalities": (["text"],),
    "audio": (),
    "image": (),
    "chat_template": (),
    "chat_template_kwargs": (),
    "echo": (),
    "logprobs": (),  # "top_logprobs" and "include" say it here
}
# What other kinds of requests call otherwise: an error names what was said.
NAMES_IN_RESPONSES: Final[Mapping[str, str]] = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "logprobs": "top_logprobs",
}
# What may be asked to stand in an answer; of all but these there is nothing in a text.
LOGPROBS: Final = "message.output_text.logprobs"
INCLUDED: Final = (
    LOGPROBS,
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
)

# Stand in the answer, too: bounded as OpenAI bounds them.
_Label = Annotated[str, Meta(max_length=512)]
_Key = Annotated[str, Meta(max_length=64)]
_Labels = Annotated[dict[_Key, _Label], Meta(max_length=16)]


class ResponseItem(Struct):
    """Of an input: a message, and what else only has a type here."""

    type: str = "message"
    role: str | None = None
    content: str | list[ContentPart] | None = None


class ResponseTextFields(Struct):
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponseFields(AskedFields, kw_only=True):
    input: str | list[ResponseItem]
    instructions: str | None = None
    max_output_tokens: int | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    text: ResponseTextFields | None = None
    parallel_tool_calls: bool | None = None
    store: bool | None = None
    metadata: _Labels | None = None
    user: _Label | None = None
    safety_identifier: _Label | None = None


# mypy sees the fields that are spelt here, and `getattr` reads the others.
ResponseRequest: type[ResponseFields] = with_contract(
    "ResponseRequest", ResponseFields, REFUSED_IN_RESPONSES
)
