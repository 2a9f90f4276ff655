"""Stamps when things happened to one request, and gives the durations in its last message.

Each moment is stamped once, by a monotonic clock; what another process measured arrives as a
duration, because clocks of two machines do not agree.
"""

import time
from collections.abc import Callable
from enum import StrEnum


class Moment(StrEnum):
    RECEIVED = "received"  # by this worker
    FETCHED = "fetched"  # what a third worker has of its prompt, where one is named
    SCHEDULED = "scheduled"  # the first chunk of its prompt is in a batch
    FIRST_SAMPLED = "first_sampled"
    GRANTED = "granted"  # destination blocks of a hand-over
    VERIFIED = "verified"  # its last layer is here and as it was sent
    READY = "ready"  # in the decode batch, as far as the KV goes
    FIRST_SENT = "first_sent"  # handed to gRPC
    LAST_SENT = "last_sent"


class RequestTimeline:
    """One request's stamps and counts; owned by whoever owns the request."""

    __slots__ = (
        "_clock",
        "_stamps",
        "forward_s",
        "num_preemptions",
        "num_recomputes",
        "prefill_s",
        "queue_s",
        "router_s",
        "transferred_bytes",
    )

    def __init__(
        self, *, router_s: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._stamps: dict[Moment, float] = {Moment.RECEIVED: clock()}
        self.router_s = router_s  # age of the request when the router sent it here
        self.queue_s: float | None = None  # measured by the prefill worker, if it was another
        self.prefill_s: float | None = None
        self.forward_s = 0.0
        self.num_preemptions = 0
        self.num_recomputes = 0
        self.transferred_bytes = 0

    @property
    def arrived_at(self) -> float:
        """Gives the moment by the timeline's clock."""
        return self._stamps[Moment.RECEIVED]

    def stamp(self, moment: Moment) -> None:
        """Notes the time; later stamps of the same moment are ignored."""
        if moment not in self._stamps:
            self._stamps[moment] = self._clock()

    def has(self, moment: Moment) -> bool:
        return moment in self._stamps

    def at(self, moment: Moment) -> float | None:
        """Gives its time by the timeline's clock; None: it has not come."""
        return self._stamps.get(moment)

    def between_s(self, first: Moment, second: Moment) -> float:
        """Seconds from one moment to the other; 0 where one is missing or they came in reverse."""
        if first not in self._stamps or second not in self._stamps:
            return 0.0
        return max(0.0, self._stamps[second] - self._stamps[first])

    def fields(self) -> dict[str, float | int]:
        """The fields of the wire's Timeline."""
        queue_s = self.between_s(Moment.RECEIVED, Moment.SCHEDULED)
        prefill_s = self.between_s(Moment.SCHEDULED, Moment.FIRST_SAMPLED)
        return {
            "router_seconds": self.router_s,
            "queue_seconds": queue_s if self.queue_s is None else self.queue_s,
            "prefill_seconds": prefill_s if self.prefill_s is None else self.prefill_s,
            "transfer_seconds": self.between_s(Moment.GRANTED, Moment.VERIFIED),
            "transfer_visible_seconds": self.between_s(Moment.FIRST_SAMPLED, Moment.READY),
            "first_token_seconds": self._since_router(Moment.FIRST_SENT),
            "total_seconds": self._since_router(Moment.LAST_SENT),
            "preemptions": self.num_preemptions,
            "recomputes": self.num_recomputes,
            "transferred_bytes": self.transferred_bytes,
            "forward_seconds": self.forward_s,
        }

    def _since_router(self, moment: Moment) -> float:
        if moment not in self._stamps:
            return 0.0
        return self.router_s + self.between_s(Moment.RECEIVED, moment)
