"""What a traced prompt leaves at who computes it for another: spans, made at its end."""

import time
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Protocol, Self

from cluster.tracing import CANCELLED, TracedRequest, kind_of
from engine.sequence import Sequence


class TimedLoan(Protocol):
    """Offers when things happened to a prompt, by `time.monotonic`; None: they have not."""

    sequence: Sequence
    received_at: float
    fetched_at: float | None  # what a third worker has of it, where one is named
    scheduled_at: float | None
    first_token_at: float | None


@dataclass(slots=True, eq=False, kw_only=True)
class LoanTrace:
    """`with` tells of a loan when its call ends."""

    trace: TracedRequest
    loan: TimedLoan
    model: str  # as clients call it
    is_fetched: bool  # a part of it a third worker has, which is asked for it first

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        loan, ended, what = self.loan, time.monotonic(), kind_of(error)
        if loan.first_token_at is not None and what == CANCELLED:
            what = None  # who has the first token may want no more: the answer ended with it
        begun = [
            ("kv_fetch", loan.received_at if self.is_fetched else None),
            ("queue", loan.fetched_at if self.is_fetched else loan.received_at),
            ("prefill", loan.scheduled_at),
        ]
        until = loan.first_token_at or ended
        phases = [(name, at) for name, at in begun if at is not None]
        for (name, start), (_, end) in pairwise([*phases, ("", until)]):
            self.trace.part(name, start, end, {}, what if end == ended else None)
        self.trace.end(loan.received_at, ended, self._attributes(), what)

    def _attributes(self) -> dict[str, str | int | float | None]:
        sequence = self.loan.sequence
        return {
            "gen_ai.request.model": self.model,
            "gen_ai.usage.input_tokens": len(sequence.prompt_ids),
            "gen_ai.usage.cache_read.input_tokens": sequence.num_cached,
            "penstock.request_id": sequence.request_id,
        }
