"""Ranks the requests that are remembered by how late they were, for who asks why. Pure."""

from collections.abc import Iterable
from heapq import nlargest
from typing import NamedTuple

from router.policy_settings import DEFAULT_CLASS, ServiceClass
from router.records import Record


class SlowRecord(NamedTuple):
    """How a request fares beside what its class is promised."""

    record: Record
    targets: ServiceClass
    itl_s: float | None  # None: it has not ended, or has one token at the most
    lateness: float  # the larger of TTFT, so far where it waits, and ITL over its target

    @classmethod
    def of(cls, record: Record, now: float) -> "SlowRecord":
        targets = record.attempts[-1].request.service_class if record.attempts else DEFAULT_CLASS
        ttft_s, itl_s = record.ttft_s, _itl_s(record)
        if ttft_s is None:
            ttft_s = (now if record.ended_at is None else record.ended_at) - record.arrived_at
        lateness = max(ttft_s / targets.ttft_s, (itl_s or 0.0) / targets.itl_s)
        return cls(record, targets, itl_s, lateness)


def slowest(
    known: Iterable[SlowRecord], more: Iterable[Record], now: float, most: int
) -> list[SlowRecord]:
    """The latest of both, the latest first; `known` come from here."""
    return nlargest(
        most, [*known, *(SlowRecord.of(each, now) for each in more)], key=lambda each: each.lateness
    )


def _itl_s(record: Record) -> float | None:
    if record.first_token_at is None or record.ended_at is None or not record.attempts:
        return None
    num_gaps = record.num_tokens // record.attempts[-1].request.num_choices - 1
    return (record.ended_at - record.first_token_at) / num_gaps if num_gaps > 0 else None
