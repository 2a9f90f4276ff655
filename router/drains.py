"""Workers that are told, through this router, to drain, to serve again, or to change their role.
The worker itself decides what becomes of it: its reports say so to every router.

Before a decode worker is told, another promises to serve on (`worker/orders.py`): the last two that
are told at once, by whichever routers, do not both go.
"""

import asyncio
import logging
import uuid
from collections.abc import Callable
from typing import Any, Final

from cluster.errors import (
    CallerError,
    InvalidRequest,
    PenstockError,
    ResourceError,
    UnsupportedFeature,
)
from cluster.rpc import Call, Serve
from cluster.types import WorkerAddress, WorkerId
from penstock.v1 import worker_pb2
from router.links import Links
from router.pool import Pool

logger = logging.getLogger(__name__)

_WORKER: Final = "penstock.v1.Worker"
_LIMIT_S: Final = 1.5  # a worker that serves says at once that it has heard
_PROMISE_S: Final = 8.0  # longer than two drains, of four calls, are told in
_PAUSES_S: Final = (0.05, 0.1, 0.2, 0.4)  # while it has promised to serve on, as a rule for less


class _HasPromised(InvalidRequest):
    """The worker serves on while another is told to drain: soon it may go itself."""


class Drains:
    def __init__(self, pool: Pool, links: Links, clock: Callable[[], float]) -> None:
        self._pool = pool
        self._links = links
        self._clock = clock

    @property
    def rpcs(self) -> dict[str, Serve]:
        """Lists the RPCs of the service Cluster."""
        return {"Drain": self.drain, "Undrain": self.undrain}

    async def drain(self, request: worker_pb2.DrainRequest, call: Call) -> worker_pb2.DrainResponse:
        worker, pauses = self._known(request.worker_id), iter(_PAUSES_S)
        while True:
            try:
                return await self._drain(worker, request)
            except _HasPromised:
                if not (pause_s := next(pauses, 0.0)):
                    raise
            await asyncio.sleep(pause_s)  # for whoever goes meanwhile: who stays is asked anew

    async def undrain(
        self, request: worker_pb2.UndrainRequest, call: Call
    ) -> worker_pb2.UndrainResponse:
        worker = self._known(request.worker_id).worker_id
        response: worker_pb2.UndrainResponse = await self._tell(worker, "Undrain", request)
        return response

    async def _drain(
        self, worker: WorkerAddress, request: worker_pb2.DrainRequest
    ) -> worker_pb2.DrainResponse:
        """Raises _HasPromised where the worker refuses for another that goes."""
        order, promise = worker_pb2.DrainRequest(), uuid.uuid4().hex
        order.CopyFrom(request)
        order.stays = stays = "" if request.force else await self._who_stays(worker, promise)
        try:
            told: worker_pb2.DrainResponse = await self._tell(worker.worker_id, "Drain", order)
        except (CallerError, ResourceError) as refusal:
            await self._give_back(stays, promise)
            if stays and isinstance(refusal, InvalidRequest) and refusal.field == "force":
                raise _HasPromised(refusal.field, refusal.message) from refusal
            raise
        if not told.promised:  # else who stays holds to what it had promised
            await self._give_back(stays, promise)
        return told

    async def _who_stays(self, worker: WorkerAddress, promise: str) -> str:
        """Gives the name of another that has promised to serve on; none where none is needed.
        Raises InvalidRequest where nobody does."""
        serving = {load.worker for load in self._pool.snapshot(self._clock()).decode}
        if worker.worker_id not in serving:
            return ""
        for each in sorted(serving - {worker.worker_id}):
            if await self._promises(each, promise, _PROMISE_S):
                return each
        raise InvalidRequest(
            "force",
            f"'{worker.worker_id}' is the last decode worker that serves, and without one every"
            " request is refused: start another one first, or insist on it with --force.",
        )

    async def _give_back(self, stays: str, promise: str) -> None:
        if stays:
            await self._promises(WorkerId(stays), promise, 0.0)

    async def _promises(self, worker: WorkerId, promise: str, seconds: float) -> bool:
        request = worker_pb2.StayRequest(promise=promise, seconds=seconds)
        try:
            await self._tell(worker, "Stay", request)
        except UnsupportedFeature:
            return True  # a release before promises: what it reports has to do
        except PenstockError as error:
            logger.info("'%s' promises nothing: %s", worker, error.message)
            return False
        return True

    async def _tell(self, worker: WorkerId, method: str, request: Any) -> Any:
        channel = self._links.get(worker).channel
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
