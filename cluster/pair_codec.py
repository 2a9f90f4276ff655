"""Puts what a worker says of its pairs on the wire and back."""

from typing import Final

from cluster.errors import InvalidRequest
from cluster.types import Direction, HistogramReport, PairFailures, PairReport, WorkerId
from penstock.v1 import worker_pb2

DIRECTIONS: Final = {
    Direction.SENT: worker_pb2.PAIR_DIRECTION_SENT,
    Direction.RECEIVED: worker_pb2.PAIR_DIRECTION_RECEIVED,
}
_DIRECTIONS_BACK: Final = {number: direction for direction, number in DIRECTIONS.items()}


def pair_report_to_pb(pair: PairReport) -> worker_pb2.PairReport:
    return worker_pb2.PairReport(
        peer=pair.peer,
        direction=DIRECTIONS[pair.direction],
        transport=pair.transport,
        transfers=pair.num_transfers,
        bytes=pair.num_bytes,
        spans=pair.num_spans,
        write_seconds=worker_pb2.Histogram(
            bounds=pair.write_seconds.bounds,
            counts=pair.write_seconds.counts,
            sum=pair.write_seconds.sum,
        ),
        verify_seconds=pair.verify_s,
        failures=[
            worker_pb2.PairFailures(phase=one.phase, reason=one.reason, count=one.count)
            for one in pair.failures
        ],
        quarantined_blocks=pair.num_quarantined_blocks,
        fenced=pair.num_fenced,
        refused_writes=pair.num_refused_writes,
    )


def pair_report_from_pb(message: worker_pb2.PairReport) -> PairReport:
    direction = _DIRECTIONS_BACK.get(message.direction)
    if direction is None:
        raise InvalidRequest(
            "pairs.direction", f"Direction {message.direction} is unknown: give sent or received."
        )
    return PairReport(
        peer=WorkerId(message.peer),
        direction=direction,
        transport=message.transport,
        num_transfers=message.transfers,
        num_bytes=message.bytes,
        num_spans=message.spans,
        write_seconds=_histogram(message.write_seconds),
        verify_s=message.verify_seconds,
        failures=tuple(
            PairFailures(phase=one.phase, reason=one.reason, count=one.count)
            for one in message.failures
        ),
        num_quarantined_blocks=message.quarantined_blocks,
        num_fenced=message.fenced,
        num_refused_writes=message.refused_writes,
    )


def _histogram(message: worker_pb2.Histogram) -> HistogramReport:
    if len(message.counts) != len(message.bounds) + 1:
        raise InvalidRequest(
            "pairs.write_seconds",
            f"A histogram of {len(message.bounds)} bounds has {len(message.counts)} counts: "
            "there is one more than bounds.",
        )
    return HistogramReport(
        bounds=tuple(message.bounds), counts=tuple(message.counts), sum=message.sum
    )
