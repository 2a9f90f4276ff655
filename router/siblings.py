"""Which prompts wait where behind the same prefix: who would share a copy of it made elsewhere."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.types import GrainHash, WorkerId

_NONE: Mapping[WorkerId, int] = {}


@dataclass(slots=True, eq=False)
class Siblings:
    """Siblings are prompts whose longest match ended at the same grain when they were placed. One
    is counted until its first token."""

    _waiting: dict[GrainHash, Counter[WorkerId]] = field(default_factory=dict)
    _placed: dict[str, tuple[GrainHash, WorkerId]] = field(default_factory=dict)

    def behind(self, last_matched: GrainHash | None) -> Mapping[WorkerId, int]:
        """How many wait at each worker, as of now: who keeps it makes a copy. None: nothing was
        matched, and nobody shares it."""
        return _NONE if last_matched is None else self._waiting.get(last_matched, _NONE)

    def placed(self, request_id: str, last_matched: GrainHash | None, worker: WorkerId) -> None:
        """One call a request, until `end`."""
        if last_matched is None:
            return
        self._placed[request_id] = last_matched, worker
        self._waiting.setdefault(last_matched, Counter())[worker] += 1

    def end(self, request_id: str) -> None:
        """Its first token is there, or it is given up."""
        if (placed := self._placed.pop(request_id, None)) is None:
            return
        last_matched, worker = placed
        waiting = self._waiting[last_matched]
        waiting[worker] -= 1
        if not waiting[worker]:
            del waiting[worker]
        if not waiting:
            del self._waiting[last_matched]

    def check(self) -> None:
        """Every count is of requests that wait."""
        counted: dict[GrainHash, Counter[WorkerId]] = defaultdict(Counter)
        for last_matched, worker in self._placed.values():
            counted[last_matched][worker] += 1
        assert counted == self._waiting
