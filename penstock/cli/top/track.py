"""Remembers what one process told lately, and tells what has changed since. Pure: times are given.

A process that was started again counts from 0 again: what it told before is forgotten then, so that
no difference is negative, nor taken over two lives.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from penstock.cli.top.samples import Samples, label, labels_of

# These fall when a process is started again, and never else: the first counts four times a second.
_RISING: Final = (
    "penstock_event_loop_lag_seconds_count",
    "penstock_requests_total",
    "penstock_placements_total",
    "penstock_step_seconds_count",
    "penstock_computed_tokens_total",
)


class Scrape(NamedTuple):
    """What a process told at one moment."""

    at: float
    samples: Samples


class Buckets(NamedTuple):
    """Values of a while: `counts[i]` are those not above `bounds[i]`, which ends in infinity."""

    bounds: Sequence[float]
    counts: Sequence[float]
    sum: float

    @property
    def num(self) -> float:
        return self.counts[-1] if self.counts else 0.0

    @property
    def mean(self) -> float | None:
        return self.sum / self.num if self.num else None

    def quantile(self, share: float) -> float | None:
        """Interpolates within a bucket, as Prometheus does; None: there was no value. What is
        above all bounds counts as the last of them."""
        if not self.num:
            return None
        rank, before, low = share * self.num, 0.0, 0.0
        for high, count in zip(self.bounds, self.counts, strict=True):
            if count >= rank and count > before:
                within = (rank - before) / (count - before)
                return low if high == math.inf else low + (high - low) * max(0.0, within)
            low, before = (low if high == math.inf else high), count
        return low


class Difference(NamedTuple):
    """What changed between two looks at one process."""

    older: Scrape
    newer: Scrape

    @property
    def seconds(self) -> float:
        return self.newer.at - self.older.at

    def changes(self, name: str) -> Iterator[tuple[Mapping[str, str], float]]:
        """By labels. What was not told before began at 0."""
        before = self.older.samples.get(name, {})
        for text, number in self.newer.samples.get(name, {}).items():
            yield labels_of(text), max(0.0, number - before.get(text, 0.0))

    def increase(self, name: str, **wanted: str) -> float:
        changes = self.changes(name)
        return sum(number for labels, number in changes if wanted.items() <= labels.items())


class Parted(NamedTuple):
    """What was before something turned, and what came since. None: there was but one look."""

    before: Difference | None
    since: Difference | None


class Track:
    def __init__(self, keep_s: float, turns: tuple[str, str] | None = None) -> None:
        """`turns`: a series and the label whose change parts what is told."""
        self._keep_s = keep_s
        self._turns = turns
        self._kept: deque[Scrape] = deque()
        self._turned: tuple[Difference | None, Scrape] | None = None  # before, and the first since

    def add(self, scrape: Scrape) -> None:
        if self._kept and _has_restarted(self._kept[-1].samples, scrape.samples):
            self.forget()
        if self._kept and self._turns:
            name, said = self._turns
            if label(self._kept[-1].samples, name, said) != label(scrape.samples, name, said):
                self._turned = _between(self._kept), scrape
        self._kept.append(scrape)
        while len(self._kept) > 2 and self._kept[1].at <= scrape.at - self._keep_s:
            self._kept.popleft()

    def forget(self) -> None:
        self._kept.clear()
        self._turned = None

    @property
    def latest(self) -> Scrape | None:
        return self._kept[-1] if self._kept else None

    @property
    def parted(self) -> Parted | None:
        """By the last turn, however long ago; None: it has not turned."""
        if self._turned is None:
            return None
        before, first = self._turned
        return Parted(before, _between([first, self._kept[-1]]))

    def over(self, window_s: float) -> Difference | None:
        """Since the last look that was at least so long ago, or the first one that is known; None:
        there was but one look."""
        if len(self._kept) < 2:
            return None
        newer = self._kept[-1]
        older = [each for each in self._kept if each.at <= newer.at - window_s]
        return Difference(older[-1] if older else self._kept[0], newer)


def increase(of: Iterable[Difference], name: str, **wanted: str) -> float:
    return sum(each.increase(name, **wanted) for each in of)


def rate(of: Iterable[Difference], name: str, **wanted: str) -> float | None:
    """A second, over several processes; None: nobody was looked at twice."""
    rates = [each.increase(name, **wanted) / each.seconds for each in of if each.seconds > 0]
    return sum(rates) if rates else None


def buckets(of: Iterable[Difference], name: str, **wanted: str) -> Buckets:
    """One histogram of all that have these labels, in all these processes."""
    counts: dict[float, float] = {}
    total = 0.0
    for each in of:
        total += each.increase(f"{name}_sum", **wanted)
        for labels, number in each.changes(f"{name}_bucket"):
            if wanted.items() <= labels.items():
                bound = _bound(labels.get("le", ""))
                counts[bound] = counts.get(bound, 0.0) + number
    bounds = sorted(counts)
    return Buckets(bounds, [counts[bound] for bound in bounds], total)


def share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _bound(text: str) -> float:
    try:
        bound = float(text)
    except ValueError:
        return math.inf
    return math.inf if math.isnan(bound) else bound


def _between(looks: Sequence[Scrape]) -> Difference | None:
    return Difference(looks[0], looks[-1]) if looks[0].at < looks[-1].at else None


def _has_restarted(before: Samples, now: Samples) -> bool:
    return any(
        now.get(name, {}).get(text, number) < number
        for name in _RISING
        for text, number in before.get(name, {}).items()
    )
