"""The log's line of each request: who served it, how fast, and how it ended. Never what it said nor
what was said to it: an error is its reason, not its sentence. What it says is counted, too."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from cluster.errors import CallerError, PenstockError, ResourceError
from cluster.log import REQUEST
from cluster.types import Placement
from penstock.v1.inference_pb2 import FinishReason, Timeline
from router.callers.key_file import ANYBODY, ApiKey
from router.metrics.requests import RequestCounts
from router.records import Fate, Phases, Record
from router.request_trace import RequestTrace
from router.sent import Sent

logger = logging.getLogger(__name__)

_PHASES = ("queue", "prefill", "transfer")  # as the decode worker tells at the end


@dataclass(slots=True, eq=False)
class RequestLine:
    """`with` writes it at the end. What has it fills it: of what was refused little is known."""

    arrived_at: float
    clock: Callable[[], float]
    counts: RequestCounts
    request_id: str = ""
    key: ApiKey | None = None
    model: str | None = None  # once it is known that this is asked for
    num_prompt_tokens: int | None = None
    placement: Placement | None = None  # the last one
    num_tries: int = 0
    sent: Sent | None = None
    record: Record | None = None
    fate: Fate | None = None
    trace: RequestTrace | None = None  # None: it is not traced
    is_attached: bool = False  # its answer was begun before, and goes on here

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        ended_at = self.clock()
        outcome, total_s = self._outcome(error), ended_at - self.arrived_at
        reason = _reason(error, outcome)
        if logger.isEnabledFor(REQUEST):
            fields = self._fields(outcome, reason, total_s)
            told = {key: value for key, value in fields if value is not None}
            logger.log(REQUEST, "request", extra={"fields": told})
        if self.trace is not None:
            fields = self._fields(outcome, reason, total_s)
            self.trace.ended(self.arrived_at, ended_at, fields, outcome, reason)
        finished = self.sent.finished if self.sent else None
        if finished is not None and self.record is not None:
            self.record.phases = _spent(finished.timeline)
        self.counts.ended(outcome, reason or "", total_s, finished)

    def _fields(
        self, outcome: str, reason: str | None, total_s: float
    ) -> Iterator[tuple[str, Any]]:
        yield "request_id", self.request_id or None
        if self.key is not None and self.key is not ANYBODY:
            yield "tenant", self.key.tenant
            yield "key", self.key.id
        yield "model", self.model
        if self.is_attached:
            yield "attached", True
        yield "outcome", outcome
        yield "reason", reason
        yield from self._answer()
        if self.placement is not None:
            yield "prefill", self.placement.prefill
            yield "decode", self.placement.decode
            yield "source", self.placement.source
            yield "tries", self.num_tries
        if self.record is not None:
            yield "generation", self.record.live.number
            yield "ttft_ms", _ms(self.record.ttft_s)
        yield "total_ms", _ms(total_s)
        if self.trace is not None:
            yield "trace_id", self.trace.id

    def _answer(self) -> Iterator[tuple[str, Any]]:
        yield "prompt_tokens", self.num_prompt_tokens
        if self.sent is None:
            return
        yield "cached_tokens", self.sent.num_cached_tokens
        yield "completion_tokens", self.sent.num_tokens
        if (finished := self.sent.finished) is not None:
            yield "finish", _finish([choice.reason for choice in finished.choices])
            yield from _phases(finished.timeline)

    def _outcome(self, error: BaseException | None) -> str:
        if error is None:
            return "finished"
        if isinstance(error, CallerError | ResourceError):
            return "refused"
        is_left = isinstance(error, asyncio.CancelledError) and self.fate is None
        return "cancelled" if is_left or self.fate is Fate.CANCELLED else "failed"


def _reason(error: BaseException | None, outcome: str) -> str | None:
    match error:
        case None:
            return None
        case PenstockError():
            return error.reason
        case asyncio.CancelledError():
            return "DEADLINE_EXCEEDED" if outcome == "failed" else None
    return "INTERNAL"


def _finish(reasons: list["FinishReason"]) -> str:
    """Names each kind once."""
    names = {FinishReason.Name(reason).removeprefix("FINISH_REASON_") for reason in reasons}
    return ",".join(sorted(names)).lower()


def _phases(timeline: Timeline) -> Iterator[tuple[str, Any]]:
    for name in _PHASES:
        yield f"{name}_ms", _ms(getattr(timeline, f"{name}_seconds"))


def _spent(timeline: Timeline) -> Phases:
    return Phases(
        router_s=timeline.router_seconds,
        queue_s=timeline.queue_seconds,
        prefill_s=timeline.prefill_seconds,
        transfer_s=timeline.transfer_seconds,
        decode_s=max(0.0, timeline.total_seconds - timeline.first_token_seconds),
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 1)
