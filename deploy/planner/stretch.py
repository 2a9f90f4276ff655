"""Picks the stretch of the traffic that is sized for, and the pace at which it comes. Pure.

Few requests say how many come, but not what they are like: of conversations ten minutes looked like
work for three workers or for six. So one looks further back for as long as traffic came as fast;
what is lately says how fast. A burst that is over before a worker has started counts in part.
"""

from collections import Counter
from collections.abc import Sequence
from math import sqrt
from statistics import median
from typing import NamedTuple

from simulator.rehearsal import Come

MAX_REQUESTS = 1500  # that are rehearsed: the latest
_STEP_S = 300.0  # further back at a time
_ALIKE_SIGMAS = 2.0
_BURST_BIN_S = 30.0
_BURST_BINS = 4  # a worker takes about as long to start
_BURST_TIMES = 2.0  # the median: beyond that, and beyond chance; so much of it counts
_BURST_SIGMAS = 3.0
_LEAST_USUAL = 5  # requests in a bin: of fewer nothing can be told
_SHORT_S = 60.0  # in which a surge shows
_SURGE_SIGMAS = 3.0
_MOST_SURGE = 1.5
_BIN_S = 5.0


class Stretch(NamedTuple):
    """Holds what is sized for."""

    requests: Sequence[Come]
    begin_s: float
    steady_s: float  # so long they have come as fast; there may be more than are looked at
    num_left_out: int  # of bursts


class Calm(NamedTuple):
    """Holds what came, but for bursts."""

    requests: Sequence[Come]
    num_left_out: int


def stretch(requests: Sequence[Come], begin_s: float, now_s: float, least_s: float) -> Stretch:
    """Takes requests for as long as they came alike, and at least `least_s`, but no more than the
    latest so many."""
    calm = without_bursts(requests, begin_s, now_s, least_s)
    since_s = alike_since(calm.requests, begin_s, now_s, least_s)
    kept = [each for each in calm.requests if each.arrived_at >= since_s]
    if len(kept) > MAX_REQUESTS:
        kept = kept[-MAX_REQUESTS:]
        begin_s = kept[0].arrived_at
    else:
        begin_s = since_s
    return Stretch(kept, begin_s, now_s - since_s, calm.num_left_out)


def alike_since(requests: Sequence[Come], begin_s: float, now_s: float, least_s: float) -> float:
    """Finds from when on they came about as fast as in the last `least_s`, but for chance."""
    since_s = max(begin_s, now_s - least_s)
    while since_s - begin_s >= _STEP_S:
        earlier_s, later_s = since_s - _STEP_S, now_s - since_s
        num_later = sum(each.arrived_at >= since_s for each in requests)
        num_earlier = sum(earlier_s <= each.arrived_at < since_s for each in requests)
        mean = (num_later + num_earlier) * _STEP_S / (later_s + _STEP_S)
        sigma = sqrt(max(1.0, mean * (1.0 + _STEP_S / later_s)))
        if abs(num_earlier - num_later * _STEP_S / later_s) > _ALIKE_SIGMAS * sigma:
            break
        since_s = earlier_s
    return since_s


def without_bursts(requests: Sequence[Come], begin_s: float, now_s: float, rare_s: float) -> Calm:
    """Bursts that are over before a worker would have started are cut down to twice what is
    usual: no start is in time for one, but there may be more. Where one goes on for longer, or they
    come more often than every `rare_s`, such is the traffic, and nothing is left out."""
    num_bins = int((now_s - begin_s) / _BURST_BIN_S)
    if num_bins < 2 * _BURST_BINS:
        return Calm(requests, 0)
    # Counted from now, so that the last one is whole.
    bins = [int((now_s - each.arrived_at) / _BURST_BIN_S) for each in requests]
    counts = Counter(bins)
    usual = median(counts[at] for at in range(num_bins))
    if usual < _LEAST_USUAL:
        return Calm(requests, 0)
    most = _BURST_TIMES * usual + _BURST_SIGMAS * sqrt(usual)
    bursts = _bursts([at for at in range(num_bins) if counts[at] > most])
    is_long = any(last - first >= _BURST_BINS for first, last in bursts)
    if is_long or len(bursts) > max(1.0, (now_s - begin_s) / rare_s):
        return Calm(requests, 0)
    # They begin and end within a bin.
    cut = {at for first, last in bursts for at in range(first - 1, last + 2)}
    kept, seen = [], Counter[int]()
    for each, at in zip(requests, bins, strict=True):
        seen[at] += 1
        share = min(1.0, _BURST_TIMES * usual / counts[at]) if at in cut else 1.0
        if int(seen[at] * share) > int((seen[at] - 1) * share):
            kept.append(each)
    return Calm(kept, len(requests) - len(kept))


def _bursts(high: Sequence[int]) -> list[tuple[int, int]]:
    """The first and the last bin of each; one that is interrupted for as long as a burst may last
    is two."""
    bursts: list[tuple[int, int]] = []
    for at in high:
        if bursts and at - bursts[-1][1] <= _BURST_BINS:
            bursts[-1] = bursts[-1][0], at
        else:
            bursts.append((at, at))
    return bursts


def pace(requests: Sequence[Come], begin_s: float, now_s: float, least_s: float) -> float:
    """Times as fast as in the whole stretch they come of late."""
    since_s = max(begin_s, now_s - least_s)
    lately = [each for each in requests if each.arrived_at >= since_s]
    whole_s, lately_s = max(1.0, now_s - begin_s), max(1.0, now_s - since_s)
    drift = (len(lately) / lately_s) / max(1e-9, len(requests) / whole_s)
    return drift * surge(lately, since_s, now_s)


def surge(requests: Sequence[Come], begin_s: float, now_s: float) -> float:
    """Times as fast as in the whole stretch they come in the last minute; 1 unless that is beyond
    chance."""
    duration_s = now_s - begin_s
    if duration_s < 2.0 * _SHORT_S:
        return 1.0
    num_bins = int(duration_s / _BIN_S)
    bins = [0] * num_bins
    for each in requests:
        bins[min(num_bins - 1, int((each.arrived_at - begin_s) / _BIN_S))] += 1
    num_short = int(_SHORT_S / _BIN_S)
    before, lately = bins[:-num_short], bins[-num_short:]
    mean = sum(before) / len(before)
    variance = sum((each - mean) ** 2 for each in before) / len(before)
    sigma = sqrt(max(variance, mean, 1.0 / len(before)) * num_short)
    if sum(lately) - mean * num_short < _SURGE_SIGMAS * sigma:
        return 1.0
    return min(_MOST_SURGE, sum(lately) / num_short / (len(requests) / num_bins))
