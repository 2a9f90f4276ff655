"""Puts what a worker predicts of itself on the wire and back: costs, their errors, its backlog.

The router computes with these numbers, so none of them is taken that would poison a price.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal

from cluster.errors import InvalidRequest
from cluster.types import (
    MAX_BACKLOG_POINTS,
    MAX_DUE_S,
    MAX_LINKS,
    DecodeCost,
    ErrorQuantiles,
    LinkCost,
    PrefillCost,
    WorkerId,
)
from penstock.v1 import worker_pb2

Backlog = tuple[tuple[float, float], ...]


def prefill_cost_to_pb(cost: PrefillCost) -> worker_pb2.PrefillCost:
    return worker_pb2.PrefillCost(c0=cost.c0, c1=cost.c1, c2=cost.c2, c3=cost.c3)


def prefill_cost_from_pb(message: worker_pb2.PrefillCost) -> PrefillCost:
    costs = _costs("prefill", message.c0, message.c1, message.c2, message.c3)
    return PrefillCost(c0=costs[0], c1=costs[1], c2=costs[2], c3=costs[3])


def decode_cost_to_pb(cost: DecodeCost) -> worker_pb2.DecodeCost:
    return worker_pb2.DecodeCost(d0=cost.d0, d1=cost.d1, d2=cost.d2)


def decode_cost_from_pb(message: worker_pb2.DecodeCost) -> DecodeCost:
    costs = _costs("decode", message.d0, message.d1, message.d2)
    return DecodeCost(d0=costs[0], d1=costs[1], d2=costs[2])


def errors_to_pb(errors: ErrorQuantiles) -> worker_pb2.ErrorQuantiles:
    return worker_pb2.ErrorQuantiles(p50=errors.p50, p90=errors.p90, p99=errors.p99)


def errors_from_pb(
    name: Literal["prefill_error", "decode_error"], report: worker_pb2.LoadReport
) -> ErrorQuantiles:
    if not report.HasField(name):
        return ErrorQuantiles()
    message: worker_pb2.ErrorQuantiles = getattr(report, name)
    if not 0.0 < message.p50 <= message.p90 <= message.p99 < math.inf:
        raise InvalidRequest(
            name,
            f"Quantiles of '{name}' are {message.p50:g}, {message.p90:g} and {message.p99:g}: "
            "they are positive and rise.",
        )
    return ErrorQuantiles(p50=message.p50, p90=message.p90, p99=message.p99)


def backlog_to_pb(backlog: Backlog) -> list[worker_pb2.BacklogPoint]:
    return [
        worker_pb2.BacklogPoint(due_seconds=due_s, work_seconds=work_s) for due_s, work_s in backlog
    ]


def backlog_from_pb(points: Sequence[worker_pb2.BacklogPoint]) -> Backlog:
    if len(points) > MAX_BACKLOG_POINTS:
        raise InvalidRequest(
            "backlog",
            f"A backlog has {MAX_BACKLOG_POINTS} points at the most, and not {len(points)}.",
        )
    backlog = ((0.0, 0.0), *((point.due_seconds, point.work_seconds) for point in points))
    for (due_s, work_s), (later_s, more_s) in pairwise(backlog):
        if not (due_s <= later_s < math.inf and work_s <= more_s < math.inf):
            raise InvalidRequest(
                "backlog",
                f"A backlog goes from {work_s:g} s of work due in {due_s:g} s to {more_s:g} s due "
                f"in {later_s:g} s: both begin at 0 or above, and rise.",
            )
    return backlog[1:]


def links_to_pb(links: Iterable[LinkCost]) -> list[worker_pb2.LinkCost]:
    return [
        worker_pb2.LinkCost(
            peer=link.peer, setup_seconds=link.setup_s, seconds_per_byte=link.s_per_byte
        )
        for link in links
    ]


def links_from_pb(messages: Sequence[worker_pb2.LinkCost]) -> tuple[LinkCost, ...]:
    if len(messages) > MAX_LINKS:
        raise InvalidRequest(
            "links", f"A worker tells of {MAX_LINKS} links at the most, and not of {len(messages)}."
        )
    return tuple(map(_link_from_pb, messages))


def due_s_from_pb(due_s: float) -> float:
    if not -MAX_DUE_S <= due_s <= MAX_DUE_S:
        raise InvalidRequest(
            "due_seconds", f"A first token is due within {MAX_DUE_S:g} s, not in {due_s:g} s."
        )
    return due_s


def share_from_pb(name: str, share: float) -> float:
    if not 0.0 <= share <= 1.0:
        raise InvalidRequest(name, f"'{name}' is {share:g}: a share is from 0 to 1.")
    return share


def _link_from_pb(message: worker_pb2.LinkCost) -> LinkCost:
    setup_s, s_per_byte = _costs("links", message.setup_seconds, message.seconds_per_byte)
    return LinkCost(peer=WorkerId(message.peer), setup_s=setup_s, s_per_byte=s_per_byte)


def _costs(name: str, *coefficients: float) -> tuple[float, ...]:
    for value in coefficients:
        if not 0.0 <= value < math.inf:
            raise InvalidRequest(
                name, f"A coefficient of '{name}' is {value:g}: a cost is finite and not negative."
            )
    return coefficients
