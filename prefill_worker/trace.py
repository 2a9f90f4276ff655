"""What a traced prompt leaves at who computes it for another: spans, made at its end."""

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from cluster.tracing import TracedRequest, kind_of
from engine.sequence import Sequence


class TimedLoan(Protocol):
    """Offers when things happened to a prompt, by `time.monotonic`; None: they have not."""

    sequence: Sequence
    received_at: float
    scheduled_at: float | None
    first_token_at: float | None


@dataclass(slots=True, eq=False)
class LoanTrace:
    """`with` tells of a loan when its call ends."""

    trace: TracedRequest
    loan: TimedLoan
    model: str  # as clients call it

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        loan, ended = self.loan, time.monotonic()
        # Who has the first token, and wants no more, may leave: the answer ended with it.
        what = kind_of(error) if loan.first_token_at is None else None
        scheduled, drawn = loan.scheduled_at, loan.first_token_at
        if scheduled is None:
            self.trace.part("queue", loan.received_at, ended, {}, what)
        else:
            self.trace.part("queue", loan.received_at, scheduled, {})
            self.trace.part("prefill", scheduled, drawn or ended, {}, what)
        self.trace.end(loan.received_at, ended, self._attributes(), what)

    def _attributes(self) -> dict[str, str | int | float | None]:
        sequence = self.loan.sequence
        return {
            "gen_ai.request.model": self.model,
            "gen_ai.usage.input_tokens": len(sequence.prompt_ids),
            "gen_ai.usage.cache_read.input_tokens": sequence.num_cached,
            "penstock.request_id": sequence.request_id,
        }
