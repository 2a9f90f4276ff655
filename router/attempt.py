"""One decision with all that it rests on: enough to take it again, term by term."""

from typing import NamedTuple

from router.decision import Decision, PlacementRequest
from router.load import Loads
from router.policy import Policy, PolicyState
from router.pool import PoolSnapshot


class Attempt(NamedTuple):
    request: PlacementRequest
    snapshot: PoolSnapshot
    state: PolicyState  # before
    policy: Policy
    decision: Decision | None  # None: nobody was left

    def as_rows(self) -> "Attempt":
        """The same without the snapshot's columns, which are larger by far than its rows: these
        are shared with other snapshots."""
        loads = self.snapshot.loads
        rows = Loads(loads, num_prefill=loads.num_prefill)
        return self._replace(snapshot=self.snapshot._replace(loads=rows))
