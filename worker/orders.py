"""What a worker does when it is told to drain, to serve again, or to promise that it serves on.

It promises while another is told to drain: so long it drains by force alone, or where one with a
lower name has promised the same for it. Whoever goes leaves somebody behind, who may only go where
a lower one stays: they cannot all have gone, whoever told them, and no store is asked.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Final

from cluster.errors import InvalidRequest, Overloaded
from cluster.rpc import Call, Serve
from cluster.types import Role, WorkerAddress
from cluster.worker_codec import role_from_pb
from penstock.v1 import worker_pb2
from worker.drain import MAX_LIMIT_S, Drain

logger = logging.getLogger(__name__)

MAX_PROMISE_S: Final = 10.0
_MAX_PROMISES: Final = 64
_MAX_NAME: Final = 64  # characters


class Promises:
    """Promises to serve on, each under a name that who asked for it gave."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}

    @property
    def left_s(self) -> float:
        """Says how long the last of them holds."""
        return max(0.0, max(self._until.values(), default=0.0) - self._clock())

    def give(self, name: str, seconds: float) -> None:
        """Promises for so long; 0: no longer. Raises InvalidRequest, and Overloaded where there
        are too many."""
        if not 0 < len(name) <= _MAX_NAME:
            raise InvalidRequest("promise", f"A promise's name has 1 to {_MAX_NAME} characters.")
        if not 0 <= seconds <= MAX_PROMISE_S:
            raise InvalidRequest(
                "seconds", f"A promise is for 0 to {MAX_PROMISE_S:g} seconds, not {seconds:g}."
            )
        now = self._clock()
        held = {each: until for each, until in self._until.items() if until > now and each != name}
        if seconds and len(held) >= _MAX_PROMISES:
            raise Overloaded(f"{_MAX_PROMISES} drains wait for this worker's promise already.")
        self._until = held | ({name: now + seconds} if seconds else {})


class Orders:
    """What routers tell one life of a worker."""

    def __init__(
        self,
        me: WorkerAddress,
        role: Role,
        drain: Drain,
        *,
        drain_s: float,
        is_serving: Callable[[], bool],
        promises: Promises | None = None,
    ) -> None:
        """`drain_s`: of a drain of which nobody says how long it may take."""
        self._me = me
        self._role = role
        self._drain = drain
        self._drain_s = drain_s
        self._is_serving = is_serving
        self._promises = promises or Promises()

    @property
    def rpcs(self) -> Mapping[str, Serve]:
        """Lists the RPCs of the service Worker."""
        return {"Drain": self.drain, "Undrain": self.undrain, "Stay": self.stay}

    async def drain(self, request: worker_pb2.DrainRequest, call: Call) -> worker_pb2.DrainResponse:
        name, then = self._me.worker_id, role_from_pb(request.then)
        if then is self._role:
            raise InvalidRequest("then", f"'{name}' is a {self._role} worker already.")
        limit_s = request.limit_seconds if request.HasField("limit_seconds") else self._drain_s
        if not 0 <= limit_s <= MAX_LIMIT_S:
            raise InvalidRequest(
                "limit_seconds", f"A drain takes 0 to {MAX_LIMIT_S:,.0f} seconds, not {limit_s:g}."
            )
        has_lower = bool(request.stays) and request.stays < name
        if (left_s := self._promises.left_s) and not (has_lower or request.force):
            raise InvalidRequest(
                "force",
                f"'{name}' has promised to serve on while another worker is told to drain, for"
                f" {left_s:.1f} s yet: say it again then, or insist on it with --force.",
            )
        logger.info("told to drain within %g s%s", limit_s, f", for {then}" if then else "")
        self._drain.begin(limit_s, then=then)
        return worker_pb2.DrainResponse(
            incarnation=self._me.incarnation,
            open_calls=self._drain.num_open_calls,
            limit_seconds=limit_s,
            promised=left_s > 0.0,
        )

    async def undrain(
        self, request: worker_pb2.UndrainRequest, call: Call
    ) -> worker_pb2.UndrainResponse:
        logger.info("told to serve again")
        self._drain.undo()
        return worker_pb2.UndrainResponse(incarnation=self._me.incarnation)

    async def stay(self, request: worker_pb2.StayRequest, call: Call) -> worker_pb2.StayResponse:
        if request.seconds and not (self._role is Role.DECODE and self._is_serving()):
            raise InvalidRequest(
                "promise", f"'{self._me.worker_id}' is no decode worker that serves."
            )
        self._promises.give(request.promise, request.seconds)
        return worker_pb2.StayResponse(incarnation=self._me.incarnation)
