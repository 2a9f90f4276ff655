"""Writes metrics as Prometheus reads them. The one door to prometheus_client, which spells names,
labels and numbers; values come from where they are kept.

A scrape is written in slices: the event loop that owns all values is never held for long.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, Generic

from prometheus_client import Metric as Family
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.utils import floatToGoString

from cluster.metrics.metric import Kind, Metric, Series, Source
from cluster.metrics.process import PROCESS, ServingProcess
from cluster.types import HistogramReport

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
_SLICE_S: Final = 0.0005  # of one turn of the event loop
_SLICE_LINES: Final = 64  # are written without a look at the clock


class Registry(Generic[Source]):
    """The metrics of one process, and where to read them. Costs nothing while nobody scrapes."""

    def __init__(
        self,
        metrics: Sequence[Metric[Source]],
        source: Callable[[], Source],
        facts: ServingProcess,
        *,
        pause: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(0),
    ) -> None:
        """`source` gives what all rows of one scrape read."""
        self._metrics = metrics
        self._source = source
        self._facts = facts
        self._engine = {"model_name": facts.model, "engine": "0"}
        self._pause = pause

    async def text(self) -> bytes:
        """Reads all, and gives other work of this loop its turns in between."""
        parts: list[bytes] = []
        began = time.perf_counter()
        for part in self._parts():
            parts.append(part)
            if time.perf_counter() - began > _SLICE_S:
                await self._pause()
                began = time.perf_counter()
        return b"".join(parts)

    def _parts(self) -> Iterator[bytes]:
        source, num_dropped = self._source(), 0
        yield b""  # to see what there is may be a turn of its own
        for metric in self._metrics:
            found = metric.bounded(source)
            num_dropped += found.num_dropped
            yield from self._written(metric, found.series)
        self._facts.num_dropped = num_dropped
        for fact in PROCESS:
            yield from self._written(fact, fact.bounded(self._facts).series)

    def _written(self, metric: Metric[Any], series: Sequence[Series]) -> Iterator[bytes]:
        names = [label.name for label in metric.labels]
        yield from _lines(metric.name, metric.kind, metric.help, _labelled(names, series, {}))
        for alias in metric.aliases:
            theirs = [alias.labels.get(name, name) for name in names]
            labelled = _labelled(theirs, series, self._engine)
            yield from _lines(alias.name, metric.kind, _same_as(metric), labelled)


Labelled = tuple[dict[str, str], float | HistogramReport]


def _same_as(metric: Metric[Any]) -> str:
    return f"The same as {metric.scraped_name}, for who knows it by vLLM's name."


def _labelled(
    names: Sequence[str], series: Sequence[Series], more: Mapping[str, str]
) -> list[Labelled]:
    return [({**dict(zip(names, each.labels, strict=True)), **more}, each.value) for each in series]


class _OneFamily:
    """What prometheus_client takes for a registry."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def collect(self) -> Iterator[Family]:
        yield self._family


def _lines(name: str, kind: Kind, sentence: str, labelled: Sequence[Labelled]) -> Iterator[bytes]:
    """One metric, some lines at a time; its heading is above the first."""
    samples, is_first = _samples(name, kind, labelled), True
    while True:
        family = Family(name, sentence, kind)
        for sample in islice(samples, _SLICE_LINES):
            family.add_sample(*sample)
        if not family.samples and not is_first:
            return
        text = generate_latest(_OneFamily(family))
        yield text if is_first else text.split(b"\n", 2)[2]
        is_first = False


def _samples(
    name: str, kind: Kind, labelled: Sequence[Labelled]
) -> Iterator[tuple[str, dict[str, str], float]]:
    for labels, number in labelled:
        if isinstance(number, HistogramReport):
            bounds = [*map(floatToGoString, number.bounds), "+Inf"]
            for bound, count in zip(bounds, number.counts, strict=True):
                yield f"{name}_bucket", {**labels, "le": bound}, count
            yield f"{name}_count", labels, number.counts[-1]
            yield f"{name}_sum", labels, number.sum
        else:
            yield f"{name}_total" if kind is Kind.COUNTER else name, labels, number
