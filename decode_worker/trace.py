"""What a traced request leaves at its decode worker: spans, made at its end of its timeline."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Final, Self

from cluster.tracing import TracedRequest, kind_of
from decode_worker.answer import OwnedAnswer
from decode_worker.timeline import Moment, RequestTimeline

# What a request does from a moment on, until the next of these.
_FETCHED: Final = {
    Moment.RECEIVED: "kv_fetch",
    Moment.FETCHED: "queue",
    Moment.SCHEDULED: "prefill",
    Moment.FIRST_SAMPLED: "decode",
}
_HERE: Final = {
    Moment.RECEIVED: "queue",
    Moment.SCHEDULED: "prefill",
    Moment.FIRST_SAMPLED: "decode",
}
_ELSEWHERE: Final = {Moment.FIRST_SAMPLED: "decode"}


@dataclass(slots=True, eq=False, kw_only=True)
class AnswerTrace:
    """`with` tells of an answer at its end, however that comes."""

    trace: TracedRequest
    answer: OwnedAnswer
    is_elsewhere: bool  # its prompt is computed by a prefill worker, which tells of that itself
    is_fetched: bool  # a part of its prompt a third worker has, which is asked for it first

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        timeline, ended, what = self.answer.timeline, time.monotonic(), kind_of(error)
        for name, start, end in self._phases(timeline, ended):
            self.trace.part(name, start, end, {}, what if end == ended else None)
        self._hand_over(timeline, ended, what)
        self.trace.end(timeline.arrived_at, ended, self._attributes(timeline), what)

    def _phases(
        self, timeline: RequestTimeline, ended: float
    ) -> Iterator[tuple[str, float, float]]:
        """Without a gap. What the prefill worker did it tells itself."""
        is_elsewhere = self.is_elsewhere and not timeline.num_recomputes
        phases = _FETCHED if self.is_fetched else _HERE
        if is_elsewhere or timeline.queue_s is not None:
            phases = _ELSEWHERE
        begun = [
            (name, at) for each, name in phases.items() if (at := timeline.at(each)) is not None
        ]
        for (name, start), (_, end) in pairwise([*begun, ("", ended)]):
            yield name, start, end

    def _hand_over(self, timeline: RequestTimeline, ended: float, what: str | None) -> None:
        """From the moment that blocks were granted to the last layer, verified."""
        if (granted := timeline.at(Moment.GRANTED)) is None:
            return
        verified = timeline.at(Moment.VERIFIED)
        if what is None and timeline.num_recomputes:
            what = "RECOMPUTED"  # else the answer ended with its first token, and needs no KV
        self.trace.part(
            "kv_transfer",
            granted,
            ended if verified is None else verified,
            {"penstock.transferred_bytes": timeline.transferred_bytes},
            what if verified is None else None,
        )

    def _attributes(self, timeline: RequestTimeline) -> dict[str, str | int | float | None]:
        accepted = self.answer.accepted
        return {
            "gen_ai.request.model": accepted.model,
            "gen_ai.usage.input_tokens": accepted.prompt_tokens,
            "gen_ai.usage.cache_read.input_tokens": accepted.cached_tokens,
            "gen_ai.usage.output_tokens": sum(each.num_output for each in self.answer.choices),
            "penstock.request_id": accepted.request_id,
            "penstock.prefill_worker": accepted.prefill_worker or None,
            "penstock.forward_seconds": timeline.forward_s,
            "penstock.preemptions": timeline.num_preemptions,
            "penstock.recomputes": timeline.num_recomputes,
        }
