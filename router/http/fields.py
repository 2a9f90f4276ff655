"""The bodies of requests as types: what OpenAI has beside the contract, and what of it is known and
refused. What is in neither is ignored, as OpenAI does.
"""

from collections.abc import Mapping
from typing import Any, Final

from router.http.contract import contract_fields
from router.http.typed_json import Struct, defstruct

# A field that is known and not supported -> what it may say all the same, for it changes nothing.
Refused = Mapping[str, tuple[Any, ...]]
REFUSED: Final[Refused] = {
    "service_tier": ("auto", "default"),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "use_beam_search": (),
    "length_penalty": (1,),
}
REFUSED_IN_CHAT: Final[Refused] = {
    **REFUSED,
    "tools": (),
    "tool_choice": ("none", "auto"),
    "functions": (),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    "store": (),
    "echo": (),
    "documents": (),
    "chat_template": (),
    "chat_template_kwargs": (),
    "continue_final_message": (),
}
REFUSED_IN_COMPLETIONS: Final[Refused] = {**REFUSED, "suffix": ()}
# A message's parts, likewise.
REFUSED_IN_MESSAGES: Final = ("name", "tool_calls", "function_call", "tool_call_id", "audio")


class StreamOptions(Struct):
    include_usage: bool | None = None


class ContentPart(Struct):
    type: str
    text: str | None = None


class Message(Struct):
    role: str
    content: str | list[ContentPart] | None = None
    name: Any = None
    tool_calls: Any = None
    function_call: Any = None
    tool_call_id: Any = None
    audio: Any = None


class AskedFields(Struct, kw_only=True):
    """What both kinds of request have."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    prompt_cache_key: str | None = None


class ChatFields(AskedFields, kw_only=True):
    messages: list[Message]
    max_completion_tokens: int | None = None
    add_generation_prompt: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class CompletionFields(AskedFields, kw_only=True):
    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    best_of: int | None = None


class TokenizeFields(Struct, kw_only=True):
    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None


class DetokenizeFields(Struct, kw_only=True):
    model: str | None = None
    tokens: list[int]
    skip_special_tokens: bool | None = None


def with_contract(name: str, base: Any, refused: Refused) -> Any:
    """Makes a type that has the contract's fields, too; its own and what is refused go before
    them."""
    own = {*base.__struct_fields__, *refused}
    fields = [field for field in contract_fields() if field[0] not in own]
    fields += [(each, Any, None) for each in refused]
    return defstruct(name, fields, bases=(base,), kw_only=True)


# mypy sees the fields that are spelt here, and `getattr` reads the others.
ChatRequest: type[ChatFields] = with_contract("ChatRequest", ChatFields, REFUSED_IN_CHAT)
CompletionRequest: type[CompletionFields] = with_contract(
    "CompletionRequest", CompletionFields, REFUSED_IN_COMPLETIONS
)
