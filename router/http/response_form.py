"""An answer of `/v1/responses` as OpenAI spells it: one message, whole or as typed events in their
order. Knows no connection.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from penstock.v1 import inference_pb2 as pb
from router.http.asked import Asked
from router.http.errors import ErrorBody
from router.http.forms import stop_reason
from router.http.replies import ChatTokenLogprob, UsageReply
from router.http.response_replies import (
    ErrorEvent,
    IncompleteDetails,
    InputTokensDetails,
    ItemEvent,
    OutputTokensDetails,
    PartEvent,
    ResponseEvent,
    ResponseFailure,
    ResponseMessage,
    ResponseReply,
    ResponseText,
    ResponseUsage,
    StatusEvent,
    TextDeltaEvent,
    TextDoneEvent,
)
from router.http.token_text import TokenTexts, chat_logprobs
from router.http.typed_json import UNSET, encode

_PREFIX: Final = len("resp_")


@dataclass(slots=True, eq=False, kw_only=True)
class ResponseForm:
    """Has what came so far: the last events of a stream say it again as a whole."""

    told: Mapping[str, Any]
    asked: Asked
    texts: TokenTexts
    end_token_ids: Collection[int]
    is_open: bool = False  # its message
    num_events: int = 0
    text: list[str] = field(default_factory=list)
    logprobs: list[ChatTokenLogprob] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish: pb.ChoiceFinish = field(default_factory=pb.ChoiceFinish)

    def opening(self, choice: int, prompt: str, accepted: pb.Accepted) -> list[ResponseEvent]:
        self.is_open = True
        message = ResponseMessage(self._item_id, "in_progress", [])
        return [
            *self._beginning(),
            ItemEvent(type="response.output_item.added", item=message),
            PartEvent(
                type="response.content_part.added",
                item_id=self._item_id,
                part=ResponseText("", []),
            ),
        ]

    def piece(self, choice: int, delta: pb.Delta) -> list[ResponseEvent] | None:
        if not (delta.text or delta.logprobs or self.asked.returns_ids):
            return None
        shown = TextDeltaEvent(
            item_id=self._item_id,
            delta=delta.text,
            logprobs=chat_logprobs(delta.logprobs, self.texts),
            token_ids=list(delta.token_ids) if self.asked.returns_ids else UNSET,
        )
        self.text.append(delta.text)
        self.logprobs += shown.logprobs
        self.token_ids += shown.token_ids or ()
        return [shown]

    def ending(self, choice: int, finish: pb.ChoiceFinish) -> list[ResponseEvent]:
        message = self.whole(choice, (), finish)
        [part] = message.content
        return [
            TextDoneEvent(item_id=self._item_id, text=part.text, logprobs=part.logprobs),
            PartEvent(type="response.content_part.done", item_id=self._item_id, part=part),
            ItemEvent(type="response.output_item.done", item=message),
        ]

    def whole(self, choice: int, pieces: Sequence[Any], finish: pb.ChoiceFinish) -> ResponseMessage:
        self.finish = finish
        return self._message

    def reply(self, choices: Sequence[ResponseMessage], usage: UsageReply) -> ResponseReply:
        reply = self._reply()
        reply.status = "incomplete" if self._is_cut else "completed"
        reply.incomplete_details = IncompleteDetails() if self._is_cut else None
        reply.output = list(choices)
        reply.usage = _usage(usage)
        reply.stop_reason = stop_reason(self.finish, self.end_token_ids)
        return reply

    def frames(self, piece: Sequence[ResponseEvent]) -> bytes:
        return b"".join(map(self._frame, piece))

    def closing(self, usage: UsageReply) -> bytes:
        reply = self.reply([self._message], usage)
        return self._frame(StatusEvent(type=f"response.{reply.status}", response=reply))

    def failure(self, error: ErrorBody) -> bytes:
        failed = self._reply()
        failed.status, failed.error = "failed", ResponseFailure(error.message)
        failed.output = [self._message] if self.is_open else []
        events = [
            *(() if self.is_open else self._beginning()),
            StatusEvent(type="response.failed", response=failed),
            ErrorEvent(code=error.code, message=error.message, param=error.param, error=error),
        ]
        return self.frames(events)

    @property
    def _item_id(self) -> str:
        return "msg_" + str(self.told["id"])[_PREFIX:]

    @property
    def _is_cut(self) -> bool:
        return self.finish.reason != pb.FINISH_REASON_STOP

    @property
    def _message(self) -> ResponseMessage:
        """As far as it came."""
        part = ResponseText(
            "".join(self.text),
            self.logprobs,
            token_ids=self.token_ids if self.asked.returns_ids else UNSET,
        )
        return ResponseMessage(self._item_id, "incomplete" if self._is_cut else "completed", [part])

    def _beginning(self) -> list[ResponseEvent]:
        created = StatusEvent(type="response.created", response=self._reply())
        return [created, StatusEvent(type="response.in_progress", response=created.response)]

    def _reply(self) -> ResponseReply:
        told = self.told
        return ResponseReply(
            id=told["id"], created_at=told["created"], model=told["model"], **self.asked.repeated
        )

    def _frame(self, event: ResponseEvent) -> bytes:
        event.sequence_number = self.num_events
        self.num_events += 1
        return b"event: %b\ndata: %b\n\n" % (event.type.encode(), encode(event))


def _usage(usage: UsageReply) -> ResponseUsage:
    return ResponseUsage(
        usage.prompt_tokens,
        InputTokensDetails(usage.prompt_tokens_details.cached_tokens),
        usage.completion_tokens,
        OutputTokensDetails(),
        usage.total_tokens,
    )
