"""Declares metrics: a row has a metric's name, its meaning, the bounds of its labels, and where its
value is kept. Nothing is counted here, and nothing is read until somebody scrapes.

Names are Prometheus's: `penstock_`, base units, no colons. The names of vLLM that dashboards,
autoscalers and endpoint pickers know stand in the same row.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import prod
from typing import Final, Generic, NamedTuple, TypeVar

from cluster.types import HistogramReport

PREFIX: Final = "penstock_"
MAX_SERIES: Final = 8192  # of one metric, whatever its labels allow
_NAME: Final = re.compile(r"penstock_[a-z][a-z0-9_]*[a-z0-9]")
_MAX_VALUE_CHARS: Final = 128  # of a label
Source = TypeVar("Source")


class Kind(StrEnum):
    """Names what may be done with a metric's values, in Prometheus's words."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Label:
    """A label never takes a value that a request says: its values are listed, or are names that
    members and operators gave, of which there are `at_most` so many."""

    name: str
    values: tuple[str, ...] = ()  # empty: names
    at_most: int = 0
    meaning: str = ""

    @property
    def num_values(self) -> int:
        return len(self.values) or self.at_most

    def allows(self, value: str) -> bool:
        return not self.values or value in self.values


class Series(NamedTuple):
    """One value of a metric, by the values of its labels."""

    labels: tuple[str, ...]
    value: float | HistogramReport


@dataclass(frozen=True, slots=True)
class Alias:
    """A name that others know the metric by. vLLM's `engine` is 0: a process has one."""

    name: str  # of a counter without `_total`
    labels: Mapping[str, str] = field(default_factory=dict)  # ours to theirs; others as they are


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric(Generic[Source]):
    """One row. Of a counter `name` is what is scraped without its `_total`."""

    name: str
    kind: Kind
    help: str
    read: Callable[[Source], Iterable[Series]]
    labels: tuple[Label, ...] = ()
    aliases: tuple[Alias, ...] = ()

    def __post_init__(self) -> None:
        assert _NAME.fullmatch(self.name), f"'{self.name}' is no name of a metric of ours"
        assert not self.name.endswith("_total"), f"'{self.name}': counters are given it"
        assert self.help.endswith("."), f"'{self.name}' needs a sentence that says what it is"
        assert all(each.num_values for each in self.labels), f"'{self.name}' has no bound"

    @property
    def scraped_name(self) -> str:
        return scraped(self.name, self.kind)

    @property
    def max_series(self) -> int:
        return min(MAX_SERIES, prod(each.num_values for each in self.labels))

    def bounded(self, source: Source) -> "Bounded":
        """Reads its values. What the declaration does not allow is left out, and counted."""
        kept: list[Series] = []
        num_dropped = 0
        for labels, value in self.read(source):
            is_fit = len(kept) < self.max_series and all(
                label.allows(said) for label, said in zip(self.labels, labels, strict=True)
            )
            if is_fit:
                kept.append(Series(tuple(said[:_MAX_VALUE_CHARS] for said in labels), value))
            num_dropped += not is_fit
        return Bounded(kept, num_dropped)


class Bounded(NamedTuple):
    series: list[Series]
    num_dropped: int


def scraped(name: str, kind: Kind) -> str:
    """Gives the name that a scrape has, and rules ask for."""
    return f"{name}_total" if kind is Kind.COUNTER else name


# How a row says where its value is.

Value = Callable[[Source], float | HistogramReport]


def value(read: Value[Source]) -> Callable[[Source], Iterable[Series]]:
    """The one value of a metric without labels."""

    def series(source: Source) -> Iterator[Series]:
        yield Series((), read(source))

    return series


def by_label(read: Callable[[Source], Mapping[str, float]]) -> Callable[[Source], Iterable[Series]]:
    """The values of a metric with one label, which are the keys of a mapping."""

    def series(source: Source) -> Iterator[Series]:
        for said, number in read(source).items():
            yield Series((said,), number)

    return series
