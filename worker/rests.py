"""Workers that stood still in the middle of a transfer, and are left alone for a while."""

import asyncio

from cluster.errors import TransferFailed
from cluster.types import Incarnation, WorkerAddress
from kv_transfer.incoming import ReservationTable


class Rests:
    """Each further transfer from such a worker would cost a time limit, and more blocks."""

    def __init__(self, table: ReservationTable, *, rest_s: float) -> None:
        self._table = table
        self._rest_s = rest_s
        self._until: dict[Incarnation, float] = {}  # loop time

    def begin(self, worker: WorkerAddress) -> None:
        """It took too long; blocks of ours that it may write yet prolong the rest till it moves."""
        self._table.stood_still(worker.incarnation)
        now = asyncio.get_running_loop().time()
        self._until = {life: until for life, until in self._until.items() if until > now}
        self._until[worker.incarnation] = now + self._rest_s

    def check(self, worker: WorkerAddress) -> None:
        """Raises TransferFailed while it rests, or holds blocks of ours up."""
        now = asyncio.get_running_loop().time()
        is_resting = self._until.get(worker.incarnation, 0.0) > now
        if is_resting or self._table.is_held_up_by(worker.incarnation):
            raise TransferFailed(f"'{worker.worker_id}' stood still in an earlier transfer.")
