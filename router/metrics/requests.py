"""Counts what became of the requests of one router, and how long each part took: at a request's
end, from its line in the log and from the timeline in its last message."""

from collections import Counter

from cluster.histogram import Histogram
from penstock.v1.inference_pb2 import Finished, FinishReason
from router.metrics.bounds import (
    ANSWER_BOUNDS_S,
    DECISION_BOUNDS_S,
    ITL_BOUNDS_S,
    PHASE_BOUNDS_S,
)


class RequestCounts:
    """Counts since the start. What was refused before it was a request is in none of them."""

    def __init__(self) -> None:
        self.by_outcome: Counter[tuple[str, str]] = Counter()  # (outcome, reason)
        self.by_finish: Counter[FinishReason] = Counter()  # answers
        self.itl = Histogram(ITL_BOUNDS_S)
        self.total = Histogram(ANSWER_BOUNDS_S)
        self.queue = Histogram(PHASE_BOUNDS_S)
        self.prefill = Histogram(PHASE_BOUNDS_S)
        self.transfer = Histogram(PHASE_BOUNDS_S)
        self.decode = Histogram(ANSWER_BOUNDS_S)
        self.decision = Histogram(DECISION_BOUNDS_S)

    def ended(
        self,
        outcome: str,
        reason: str,
        total_s: float,
        finished: Finished | None = None,
    ) -> None:
        """Takes what its line says, and of a whole answer the last message. Each of an answer's
        gaps counts as long as their mean."""
        self.by_outcome[outcome, reason] += 1
        if finished is None:
            return
        timeline, num_choices = finished.timeline, len(finished.choices)
        decode_s = max(0.0, timeline.total_seconds - timeline.first_token_seconds)
        self.total.add(total_s)
        self.queue.add(timeline.queue_seconds)
        self.prefill.add(timeline.prefill_seconds)
        self.decode.add(decode_s)
        if timeline.transferred_bytes:
            self.transfer.add(timeline.transfer_seconds)
        num_gaps = finished.usage.completion_tokens - num_choices
        if num_gaps > 0:
            self.itl.add(decode_s * num_choices / num_gaps, num_gaps)
        for choice in finished.choices:
            self.by_finish[choice.reason] += 1

    def finishes(self) -> dict[str, float]:
        """Counts whole answers by what ended them."""

        def name(reason: "FinishReason") -> str:
            return FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()

        return {name(reason): num for reason, num in self.by_finish.items()}
