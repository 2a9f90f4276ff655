"""Knows which prompts wait where behind the same prefix: who would share a copy made elsewhere."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.types import GrainHash, WorkerId

_NONE: Mapping[WorkerId, int] = {}


class Sibling(NamedTuple):
    """One that waits."""

    last_matched: GrainHash
    worker: WorkerId


@dataclass(slots=True, eq=False)
class Siblings:
    """Siblings are prompts whose longest match ended at the same grain when they were placed. One
    is counted until its first token."""

    _waiting: dict[GrainHash, Counter[WorkerId]] = field(default_factory=dict)

    def behind(self, last_matched: GrainHash | None) -> Mapping[WorkerId, int]:
        """Says how many wait at each worker, as of now: who keeps it makes a copy. None: nothing
        was matched, and nobody shares it."""
        return _NONE if last_matched is None else self._waiting.get(last_matched, _NONE)

    def placed(self, last_matched: GrainHash | None, worker: WorkerId) -> Sibling | None:
        """Returns what to give to `end`."""
        if last_matched is None:
            return None
        self._waiting.setdefault(last_matched, Counter())[worker] += 1
        return Sibling(last_matched, worker)

    def end(self, sibling: Sibling) -> None:
        """Its first token is there, or it is given up."""
        waiting = self._waiting[sibling.last_matched]
        waiting[sibling.worker] -= 1
        if not waiting[sibling.worker]:
            del waiting[sibling.worker]
        if not waiting:
            del self._waiting[sibling.last_matched]

    def check(self, siblings: Iterable[Sibling]) -> None:
        """Every count is of requests that wait: these."""
        counted: dict[GrainHash, Counter[WorkerId]] = defaultdict(Counter)
        for last_matched, worker in siblings:
            counted[last_matched][worker] += 1
        assert counted == self._waiting
