"""Workers that are told, through this router, to drain, to serve again, or to change their role.
The worker itself decides what becomes of it: its reports say so to every router."""

from collections.abc import Callable
from typing import Any

from cluster.errors import InvalidRequest
from cluster.rpc import Call, Serve
from cluster.store import Store
from cluster.types import Incarnation, WorkerAddress, WorkerId
from penstock.v1 import worker_pb2
from router.drain_notes import DrainNotes, Told
from router.links import Links
from router.pool import Pool

_WORKER = "penstock.v1.Worker"
_LIMIT_S = 1.5  # a worker that serves says at once that it has heard


class Drains:
    def __init__(self, pool: Pool, links: Links, store: Store, clock: Callable[[], float]) -> None:
        """`store`: of all routers; two of them must not take the last two decode workers."""
        self._pool = pool
        self._links = links
        self._notes = DrainNotes(store, clock=clock)
        self._clock = clock

    @property
    def rpcs(self) -> dict[str, Serve]:
        """Lists the RPCs of the service Cluster."""
        return {"Drain": self.drain, "Undrain": self.undrain}

    async def drain(self, request: worker_pb2.DrainRequest, call: Call) -> worker_pb2.DrainResponse:
        worker = self._known(request.worker_id)

        def check(told: Told) -> None:
            if not request.force:
                self._check_not_last(worker, told)

        await self._notes.add(worker.incarnation, check)
        try:
            response: worker_pb2.DrainResponse = await self._tell(worker, "Drain", request)
        except InvalidRequest:
            await self._notes.remove(worker.incarnation)
            raise
        return response

    async def undrain(
        self, request: worker_pb2.UndrainRequest, call: Call
    ) -> worker_pb2.UndrainResponse:
        worker = self._known(request.worker_id)
        response: worker_pb2.UndrainResponse = await self._tell(worker, "Undrain", request)
        await self._notes.remove(worker.incarnation)
        return response

    async def _tell(self, worker: WorkerAddress, method: str, request: Any) -> Any:
        channel = self._links.get(worker.worker_id).channel
        return await channel.unary(_WORKER, method, request, timeout_s=_LIMIT_S)

    def _known(self, name: str) -> WorkerAddress:
        worker = self._pool.address(WorkerId(name))
        if worker is None:
            statuses = self._pool.statuses(self._clock())
            known = sorted(each.member.worker.worker_id for each in statuses)
            raise InvalidRequest(
                "worker_id",
                f"There is no worker '{name[:80]}' here; there is {', '.join(known) or 'none'}.",
            )
        return worker

    def _check_not_last(self, worker: WorkerAddress, told: Told) -> None:
        """`told`: who was told to drain lately, by whichever router, besides who says so."""
        serving = {load.worker for load in self._pool.snapshot(self._clock()).decode}
        stay = {each for each in serving if self._life(each) not in told - {worker.incarnation}}
        if stay == {worker.worker_id}:
            raise InvalidRequest(
                "force",
                f"'{worker.worker_id}' is the last decode worker that serves, and without one every"
                " request is refused: start another one first, or insist on it.",
            )

    def _life(self, worker: WorkerId) -> Incarnation | None:
        address = self._pool.address(worker)
        return address.incarnation if address else None
