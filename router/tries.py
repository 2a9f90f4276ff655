"""Keeps which lives of workers one request was given to, and what came of it.

A life that ends while it has the request may die of it: after two of them, no third is risked.
"""

from dataclasses import dataclass, field
from typing import Final

from cluster.errors import Draining, PenstockError, WorkersDied
from cluster.types import WorkerAddress, WorkerId
from router.pool import Pool

MAX_TRIES: Final = 3
MAX_DEATHS: Final = 2


@dataclass(slots=True, eq=False)
class Tries:
    """The tries of one request so far."""

    pool: Pool
    failure: PenstockError | None = None  # of the last one
    _num: int = 0
    _failed: list[WorkerAddress] = field(default_factory=list)
    _died: list[WorkerId] = field(default_factory=list)

    @property
    def excluded(self) -> frozenset[WorkerId]:
        """Names the workers that are still the life that failed."""
        return frozenset(
            tried.worker_id
            for tried in self._failed
            if (now := self.pool.address(tried.worker_id)) and now.incarnation == tried.incarnation
        )

    def failed(self, worker: WorkerAddress, failure: PenstockError) -> None:
        """Counts a try. Raises `failure` when it was the last."""
        self.failure = failure
        self._num += 1
        if isinstance(failure, Draining):  # if it serves again, it may take this, too
            self.pool.drains(worker.worker_id, worker.incarnation)
        else:
            self._failed.append(worker)
        if self._num >= MAX_TRIES:
            raise failure

    def died(self, request_id: str, worker: WorkerId, num_tokens: int) -> None:
        """Counts a life that ended with the request in its hands. Raises WorkersDied when it was
        one too many."""
        self._died.append(worker)
        if len(self._died) >= MAX_DEATHS:
            raise WorkersDied(request_id, self._died, tokens_emitted=num_tokens)
