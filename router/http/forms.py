"""The two kinds of answer as OpenAI spells them: how a choice opens, goes on and ends in a stream,
and how its pieces are one. Knows no connection.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from penstock.v1 import inference_pb2 as pb
from router.http.asked import Asked
from router.http.errors import ErrorBody, failure_frame
from router.http.replies import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatDelta,
    ChatLogprobs,
    ChatReply,
    FinishReasonText,
    TextChoice,
    TextLogprobs,
    TextReply,
    UsageReply,
)
from router.http.token_text import (
    TokenTexts,
    add_text_logprobs,
    chat_logprobs,
    no_text_logprobs,
)
from router.http.typed_json import UNSET, encode

_REASONS: Final[dict[int, FinishReasonText]] = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
}
_DONE: Final = b"data: [DONE]\n\n"


class Form(Protocol):
    """A choice is numbered among all of its answer."""

    def opening(self, choice: int, prompt: str, accepted: pb.Accepted) -> Any:
        """What stands before its first piece; None: nothing."""
        ...

    def piece(self, choice: int, delta: pb.Delta) -> Any:
        """What has come; None: nothing that is shown."""
        ...

    def ending(self, choice: int, finish: pb.ChoiceFinish) -> Any: ...

    def whole(self, choice: int, pieces: Sequence[Any], finish: pb.ChoiceFinish) -> Any: ...

    def reply(self, choices: Sequence[Any], usage: UsageReply) -> Any: ...

    def frames(self, piece: Any) -> bytes:
        """Spells what stood before, has come or ends a choice as events of a stream."""
        ...

    def closing(self, usage: UsageReply) -> bytes:
        """Spells what ends a stream that is whole."""
        ...

    def failure(self, error: ErrorBody) -> bytes:
        """Spells what ends a stream that failed."""
        ...


@dataclass(slots=True, eq=False, kw_only=True)
class ChatForm:
    told: Mapping[str, Any]  # what every body of one answer says
    asked: Asked
    texts: TokenTexts
    end_token_ids: Collection[int]

    def opening(self, choice: int, prompt: str, accepted: pb.Accepted) -> ChatChunkChoice:
        return ChatChunkChoice(choice, ChatDelta(role="assistant", content=""))

    def piece(self, choice: int, delta: pb.Delta) -> ChatChunkChoice | None:
        if not (delta.text or delta.logprobs or self.asked.returns_ids):
            return None
        shown = ChatChunkChoice(choice, ChatDelta(content=delta.text))
        if delta.logprobs:
            shown.logprobs = ChatLogprobs(chat_logprobs(delta.logprobs, self.texts))
        if self.asked.returns_ids:
            shown.token_ids = list(delta.token_ids)
        return shown

    def ending(self, choice: int, finish: pb.ChoiceFinish) -> ChatChunkChoice:
        return ChatChunkChoice(
            choice,
            ChatDelta(),
            finish_reason=_REASONS[finish.reason],
            stop_reason=stop_reason(finish, self.end_token_ids),
        )

    def whole(
        self, choice: int, pieces: Sequence[ChatChunkChoice], finish: pb.ChoiceFinish
    ) -> ChatChoice:
        logprobs = [token for piece in pieces if piece.logprobs for token in piece.logprobs.content]
        return ChatChoice(
            choice,
            AssistantMessage("".join(piece.delta.content or "" for piece in pieces)),
            ChatLogprobs(logprobs) if self.asked.num_logprobs is not None else None,
            _REASONS[finish.reason],
            stop_reason(finish, self.end_token_ids),
            _ids(pieces) if self.asked.returns_ids else UNSET,
        )

    def reply(self, choices: Sequence[ChatChoice], usage: UsageReply) -> ChatReply:
        return ChatReply(choices=list(choices), usage=usage, **self.told)

    def frames(self, piece: ChatChunkChoice) -> bytes:
        usage = None if self.asked.includes_usage else UNSET
        return _frame(ChatChunk(choices=[piece], usage=usage, **self.told))

    def closing(self, usage: UsageReply) -> bytes:
        return _closing(self.asked, ChatChunk(choices=[], usage=usage, **self.told))

    def failure(self, error: ErrorBody) -> bytes:
        return failure_frame(error)


@dataclass(slots=True, eq=False, kw_only=True)
class TextForm:
    told: Mapping[str, Any]  # what every body of one answer says
    asked: Asked
    texts: TokenTexts
    end_token_ids: Collection[int]
    offsets: dict[int, int] = field(default_factory=dict)  # in its text, of a choice's next token

    def opening(self, choice: int, prompt: str, accepted: pb.Accepted) -> TextChoice | None:
        if not self.asked.is_echoed:
            return None
        shown = TextChoice(choice, prompt)
        if accepted.prompt_logprobs:
            shown.logprobs = self._logprobs(choice, accepted.prompt_logprobs)
        return shown

    def piece(self, choice: int, delta: pb.Delta) -> TextChoice | None:
        if not (delta.text or delta.logprobs or self.asked.returns_ids):
            return None
        shown = TextChoice(choice, delta.text)
        if delta.logprobs:
            shown.logprobs = self._logprobs(choice, delta.logprobs)
        if self.asked.returns_ids:
            shown.token_ids = list(delta.token_ids)
        return shown

    def ending(self, choice: int, finish: pb.ChoiceFinish) -> TextChoice:
        return TextChoice(
            choice,
            "",
            finish_reason=_REASONS[finish.reason],
            stop_reason=stop_reason(finish, self.end_token_ids),
        )

    def whole(
        self, choice: int, pieces: Sequence[TextChoice], finish: pb.ChoiceFinish
    ) -> TextChoice:
        whole = self.ending(choice, finish)
        whole.text = "".join(piece.text for piece in pieces)
        if self.asked.num_logprobs is not None:
            whole.logprobs = _joined([piece.logprobs for piece in pieces if piece.logprobs])
        if self.asked.returns_ids:
            whole.token_ids = _ids(pieces)
        return whole

    def reply(self, choices: Sequence[TextChoice], usage: UsageReply) -> TextReply:
        return TextReply(choices=list(choices), usage=usage, **self.told)

    def frames(self, piece: TextChoice) -> bytes:
        usage = None if self.asked.includes_usage else UNSET
        return _frame(TextReply(choices=[piece], usage=usage, **self.told))

    def closing(self, usage: UsageReply) -> bytes:
        return _closing(self.asked, self.reply([], usage))

    def failure(self, error: ErrorBody) -> bytes:
        return failure_frame(error)

    def _logprobs(
        self, choice: int, tokens: Sequence[pb.TokenLogprob] | Sequence[pb.PromptLogprob]
    ) -> TextLogprobs:
        shown, offset = no_text_logprobs(), self.offsets.get(choice, 0)
        self.offsets[choice] = add_text_logprobs(shown, tokens, self.texts, offset)
        return shown


def _frame(body: Any) -> bytes:
    return b"data: %b\n\n" % encode(body)


def _closing(asked: Asked, usage: ChatChunk | TextReply) -> bytes:
    return (_frame(usage) if asked.includes_usage else b"") + _DONE


def _joined(parts: Sequence[TextLogprobs]) -> TextLogprobs:
    joined = no_text_logprobs()
    for part in parts:
        joined.tokens += part.tokens
        joined.token_logprobs += part.token_logprobs
        joined.top_logprobs += part.top_logprobs
        joined.text_offset += part.text_offset
    return joined


def _ids(pieces: Sequence[ChatChunkChoice] | Sequence[TextChoice]) -> list[int]:
    return [token for piece in pieces for token in piece.token_ids or ()]


def stop_reason(finish: pb.ChoiceFinish, end_token_ids: Collection[int]) -> str | int | None:
    """The string or the token that was asked for; None for the model's own end, as in vLLM."""
    if finish.HasField("stop_string"):
        return finish.stop_string
    is_token = finish.HasField("stop_token_id") and finish.stop_token_id not in end_token_ids
    return finish.stop_token_id if is_token else None
