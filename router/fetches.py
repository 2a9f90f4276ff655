"""Knows the prefixes on their way from one worker to another for prompts that were placed.

Who is placed behind a fetch counts on it, and may come to the worker first: each goes there by its
own decode worker. So it is told the source, too: whoever is first fetches, the others wait.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.types import GrainHash, WorkerId


class Missing(NamedTuple):
    """Names what a worker fetches by the first grain that it lacks: as its own locks do."""

    worker: WorkerId
    grain: GrainHash


@dataclass(slots=True, eq=False)
class ExpectedFetches:
    """Each lasts as long as any request that was told of it."""

    _sources: dict[Missing, WorkerId] = field(default_factory=dict)
    _num_told: Counter[Missing] = field(default_factory=Counter)

    def source(self, missing: Missing) -> WorkerId | None:
        """Says from whom it is fetched; None: it is not."""
        return self._sources.get(missing)

    def told(self, missing: Missing, source: WorkerId) -> None:
        """A request names the source to the worker, until `end`."""
        self._sources[missing] = source
        self._num_told[missing] += 1

    def end(self, missing: Missing) -> None:
        """Its prefix is there, or it is given up."""
        self._num_told[missing] -= 1
        if not self._num_told[missing]:
            del self._num_told[missing], self._sources[missing]

    def check(self, told: Iterable[Missing]) -> None:
        """Every fetch is that of requests which have not ended: of these."""
        assert Counter(told) == self._num_told
        assert self._num_told.keys() == self._sources.keys()
