"""grpc.health.v1 with a Watch that really streams, and the monitor of forward progress behind it.

A process that answers pings while its engine is stuck is not healthy: serving means that steps
end. Knows no engine and no scheduler; they call `begin_step` and `end_step`.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any, Never

from grpc_health.v1 import health_pb2

from cluster.errors import UnknownService

HEALTH = "grpc.health.v1.Health"
_Status = health_pb2.HealthCheckResponse
# Serves while steps end, also in a worker that drains and therefore serves nothing else.
PROGRESS = "penstock.progress"


class HealthState:
    """Knows which services serve. The name "" is the process as a whole; nothing serves at
    first."""

    def __init__(self, services: Iterable[str] = ()) -> None:
        self._serving = dict.fromkeys(("", *services), False)
        self._changed: set[asyncio.Event] = set()

    @property
    def services(self) -> tuple[str, ...]:
        return tuple(self._serving)

    def is_serving(self, service: str = "") -> bool | None:
        """None if the service is unknown."""
        return self._serving.get(service)

    def set(self, service: str, is_serving: bool) -> None:
        """Tells every watcher, if it is a change."""
        if self._serving.get(service) is not is_serving:
            self._serving[service] = is_serving
            for changed in self._changed:
                changed.set()

    def set_all(self, is_serving: bool) -> None:
        for service in self.services:
            if service != PROGRESS:
                self.set(service, is_serving)

    async def watch(self, service: str, send: Callable[[bool | None], Any]) -> Never:
        """Awaits `send` with the state now, and after each change, until cancelled."""
        changed = asyncio.Event()
        self._changed.add(changed)
        try:
            sent: object = changed  # equals no state
            while True:
                changed.clear()
                state = self.is_serving(service)
                if state is not sent:
                    await send(state)
                    sent = state
                else:
                    await changed.wait()
        finally:
            self._changed.discard(changed)


def health_rpcs(state: HealthState) -> dict[str, Callable[..., Any]]:
    """Lists what `cluster.rpc` serves as grpc.health.v1, by the name of the RPC."""

    async def check(request: health_pb2.HealthCheckRequest, call: Any) -> Any:
        is_serving = state.is_serving(request.service)
        if is_serving is None:
            raise UnknownService(request.service, state.services)
        return _response(is_serving)

    async def watch(request: health_pb2.HealthCheckRequest, call: Any) -> None:
        await state.watch(request.service, lambda state: call.send(_response(state)))

    return {"Check": check, "Watch": watch}


def _response(state: bool | None) -> health_pb2.HealthCheckResponse:
    if state is None:
        return _Status(status=_Status.SERVICE_UNKNOWN)
    return _Status(status=_Status.SERVING if state else _Status.NOT_SERVING)


class ProgressMonitor:
    """Watches whether steps end in time. Stale is no end for max(floor, factor x the predicted
    step) while a step runs, or while work waits and none is begun."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        floor_s: float = 2.0,
        factor: float = 4.0,
    ) -> None:
        self._clock = clock
        self._floor_s = floor_s
        self._factor = factor
        self._limit_s = floor_s
        self._began: float | None = None  # of the running step
        self._waiting_since: float | None = None

    def begin_step(self, predicted_s: float = 0.0) -> None:
        self._began = self._clock()
        self._limit_s = max(self._floor_s, self._factor * predicted_s)

    def end_step(self) -> None:
        self._began = None
        self._limit_s = self._floor_s
        if self._waiting_since is not None:
            self._waiting_since = self._clock()

    def set_waiting(self, has_work: bool) -> None:
        """Says whether there is work for which a step should begin."""
        if not has_work:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = self._clock()

    @property
    def step_age_s(self) -> float:
        """Age of the running step; 0 between steps."""
        return 0.0 if self._began is None else self._clock() - self._began

    def is_stale(self, now: float | None = None) -> bool:
        since = self._waiting_since if self._began is None else self._began
        return since is not None and (self._clock() if now is None else now) - since > self._limit_s


async def follow_progress(
    state: HealthState,
    is_serving: Callable[[], bool],
    *,
    is_moving: Callable[[], bool] = lambda: True,
    interval_s: float = 0.25,
) -> Never:
    """Asks a process whether it serves and whether its steps end, four times a second, and tells
    the watchers."""
    while True:
        state.set_all(is_serving())
        state.set(PROGRESS, is_moving())
        await asyncio.sleep(interval_s)
