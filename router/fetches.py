"""Which prefixes are on their way from one worker to another for prompts that were placed.

Who is placed behind a fetch counts on it, and may come to the worker first: each goes there by its
own decode worker. So it is told the source, too: whoever is first fetches, the others wait.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.types import GrainHash, WorkerId


class _Missing(NamedTuple):
    """What a worker fetches, by the first grain that it lacks: as its own locks do."""

    worker: WorkerId
    grain: GrainHash


@dataclass(slots=True, eq=False)
class Fetches:
    """Each lasts as long as any request that was told of it."""

    _sources: dict[_Missing, WorkerId] = field(default_factory=dict)
    _told: dict[str, _Missing] = field(default_factory=dict)
    _num_told: Counter[_Missing] = field(default_factory=Counter)

    def source(self, worker: WorkerId, first_missing: GrainHash) -> WorkerId | None:
        """From whom this worker fetches what begins there; None: it does not."""
        return self._sources.get(_Missing(worker, first_missing))

    def told(
        self, request_id: str, worker: WorkerId, first_missing: GrainHash, source: WorkerId
    ) -> None:
        """This request names the source to the worker. One call a request, until `end`."""
        self._told[request_id] = missing = _Missing(worker, first_missing)
        self._sources[missing] = source
        self._num_told[missing] += 1

    def end(self, request_id: str) -> None:
        """Its prefix is there, or it is given up."""
        missing = self._told.pop(request_id, None)
        if missing is None:
            return
        self._num_told[missing] -= 1
        if not self._num_told[missing]:
            del self._num_told[missing], self._sources[missing]

    def check(self) -> None:
        """Every fetch is that of requests which have not ended."""
        assert Counter(self._told.values()) == self._num_told
        assert self._num_told.keys() == self._sources.keys()
