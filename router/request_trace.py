"""What a traced request leaves at its router: spans, made at its end of what is known of it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from cluster.codec import trace_to_bytes
from cluster.tracing import (
    CANCELLED,
    TRACEPARENT,
    TRACERESPONSE,
    TRACESTATE,
    TracedRequest,
    Tracing,
)
from cluster.types import Placement

# What the request's line calls them, as OpenTelemetry's GenAI conventions do; the rest is ours.
_NAMES: Final = {
    "model": "gen_ai.request.model",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
}
_FINISH: Final = "finish"


def traced(tracing: Tracing, header: Callable[[str], str | None]) -> "RequestTrace | None":
    """Begins a request's trace, a part of its caller's where he has one; None: it is not traced.
    `header`: reads one, of HTTP or of gRPC's metadata."""
    parent = header(TRACEPARENT)
    trace = tracing.begin("router", parent, header(TRACESTATE) if parent else None)
    return None if trace is None else RequestTrace(trace)


class _Placed(NamedTuple):
    began: float
    ended: float
    placement: Placement


@dataclass(slots=True, eq=False)
class RequestTrace:
    trace: TracedRequest
    is_chat: bool = False
    _placed: list[_Placed] = field(default_factory=list)  # one a try

    @property
    def id(self) -> str:
        return f"{self.trace.trace_id:032x}"

    @property
    def header(self) -> tuple[str, str]:
        """Tells the caller which trace his request is, as the W3C's level 2 has it."""
        return TRACERESPONSE, self.trace.traceparent

    @property
    def rest_of_request(self) -> bytes:
        """Tells workers whose part they are, behind a `DecodeRequest`."""
        return trace_to_bytes(self.trace.traceparent, self.trace.state)

    def placed(self, began: float, ended: float, placement: Placement) -> None:
        self._placed.append(_Placed(began, ended, placement))

    def ended(
        self,
        began: float,
        ended: float,
        fields: Iterable[tuple[str, Any]],
        outcome: str,
        reason: str | None,
    ) -> None:
        """`fields`: of the request's line."""
        error = None if outcome == "finished" else reason or CANCELLED
        trace, placed = self.trace, self._placed
        until = placed[0].began if placed else ended
        trace.part("admission", began, until, {}, None if placed else error)
        for number, each in enumerate(placed, 1):
            trace.part("placement", each.began, each.ended, _named(each.placement, number))
        kind = {
            "gen_ai.operation.name": "chat" if self.is_chat else "text_completion",
            "gen_ai.provider.name": "penstock",
        }
        trace.end(began, ended, kind | dict(map(_attribute, fields)), error)


def _named(placement: Placement, number: int) -> dict[str, str | int | None]:
    return {
        "penstock.try": number,
        "penstock.decode_worker": placement.decode,
        "penstock.prefill_worker": placement.prefill,
        "penstock.source_worker": placement.source,
    }


def _attribute(said: tuple[str, Any]) -> tuple[str, Any]:
    key, value = said
    if key == _FINISH:
        return "gen_ai.response.finish_reasons", tuple(value.split(","))
    return _NAMES.get(key, f"penstock.{key}"), value
