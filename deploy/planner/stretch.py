"""Which stretch of the traffic is sized for, and at what pace it comes. Pure.

Few requests say how many come, but not what they are like: of conversations ten minutes looked like
work for three workers or for six. So one looks further back for as long as traffic came as fast;
what is lately says how fast. A burst that is over before a worker has started is no reason for one.
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
_BURST_TIMES = 2.0  # the median, and beyond chance
_BURST_SIGMAS = 3.0
_LEAST_USUAL = 5  # requests in a bin: of fewer nothing can be told
_SHORT_S = 60.0  # in which a surge shows
_SURGE_SIGMAS = 3.0
_MOST_SURGE = 1.5
_BIN_S = 5.0


class Stretch(NamedTuple):
    """What is sized for."""

    requests: Sequence[Come]
    begin_s: float
    steady_s: float  # so long they have come as fast; there may be more than are looked at
    num_left_out: int  # of a burst


class Calm(NamedTuple):
    """What came, but for a burst."""

    requests: Sequence[Come]
    num_left_out: int


def stretch(requests: Sequence[Come], begin_s: float, now_s: float, least_s: float) -> Stretch:
    """As long as they came alike, and at least `least_s`, but no more than the latest so many."""
    calm = without_burst(requests, begin_s, now_s)
    since_s = alike_since(calm.requests, begin_s, now_s, least_s)
    kept = [each for each in calm.requests if each.arrived_s >= since_s]
    if len(kept) > MAX_REQUESTS:
        kept = kept[-MAX_REQUESTS:]
        begin_s = kept[0].arrived_s
    else:
        begin_s = since_s
    return Stretch(kept, begin_s, now_s - since_s, calm.num_left_out)


def alike_since(requests: Sequence[Come], begin_s: float, now_s: float, least_s: float) -> float:
    """From when on they came about as fast as in the last `least_s`, but for chance."""
    since_s = max(begin_s, now_s - least_s)
    while since_s - begin_s >= _STEP_S:
        earlier_s, later_s = since_s - _STEP_S, now_s - since_s
        num_later = sum(each.arrived_s >= since_s for each in requests)
        num_earlier = sum(earlier_s <= each.arrived_s < since_s for each in requests)
        mean = (num_later + num_earlier) * _STEP_S / (later_s + _STEP_S)
        sigma = sqrt(max(1.0, mean * (1.0 + _STEP_S / later_s)))
        if abs(num_earlier - num_later * _STEP_S / later_s) > _ALIKE_SIGMAS * sigma:
            break
        since_s = earlier_s
    return since_s


def without_burst(requests: Sequence[Come], begin_s: float, now_s: float) -> Calm:
    """One burst that is over before a worker would have started is cut down to what is usual. Of
    two, or of a long one, nothing is left out: such is the traffic."""
    num_bins = int((now_s - begin_s) / _BURST_BIN_S)
    if num_bins < 2 * _BURST_BINS:
        return Calm(requests, 0)

    def bin_of(each: Come) -> int:  # counted from now: the last one is whole
        return int((now_s - each.arrived_s) / _BURST_BIN_S)

    counts = Counter(map(bin_of, requests))
    usual = median(counts[at] for at in range(num_bins))
    if usual < _LEAST_USUAL:
        return Calm(requests, 0)
    most = _BURST_TIMES * usual + _BURST_SIGMAS * sqrt(usual)
    high = [at for at in range(num_bins) if counts[at] > most]
    if not high or high[-1] - high[0] >= _BURST_BINS:
        return Calm(requests, 0)
    kept, seen = [], Counter[int]()
    for each in requests:
        at = bin_of(each)
        seen[at] += 1
        if high[0] - 1 <= at <= high[-1] + 1:  # it begins and ends within one
            share = min(1.0, usual / counts[at])
            if int(seen[at] * share) == int((seen[at] - 1) * share):
                continue
        kept.append(each)
    return Calm(kept, len(requests) - len(kept))


def pace(requests: Sequence[Come], begin_s: float, now_s: float, least_s: float) -> float:
    """Times as fast as in the whole stretch they come of late."""
    since_s = max(begin_s, now_s - least_s)
    lately = [each for each in requests if each.arrived_s >= since_s]
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
        bins[min(num_bins - 1, int((each.arrived_s - begin_s) / _BIN_S))] += 1
    num_short = int(_SHORT_S / _BIN_S)
    before, lately = bins[:-num_short], bins[-num_short:]
    mean = sum(before) / len(before)
    variance = sum((each - mean) ** 2 for each in before) / len(before)
    sigma = sqrt(max(variance, mean, 1.0 / len(before)) * num_short)
    if sum(lately) - mean * num_short < _SURGE_SIGMAS * sigma:
        return 1.0
    return min(_MOST_SURGE, sum(lately) / num_short / (len(requests) / num_bins))
