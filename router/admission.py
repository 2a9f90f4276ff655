"""Admits requests to the router: a bound, one request an id, and none while it drains."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.errors import Draining, DuplicateRequest, Overloaded


class Admission:
    """The requests in flight, by id."""

    def __init__(self, max_in_flight: int) -> None:
        self._max_in_flight = max_in_flight
        self._request_ids: set[str] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.is_draining = False
        self._refuses = False

    @property
    def num_in_flight(self) -> int:
        return len(self._request_ids)

    @contextmanager
    def admit(self, request_id: str) -> Iterator[None]:
        """Has a request in flight for as long as the scope lasts."""
        if self._refuses:
            raise Draining("This router is draining: send the request to another one.")
        if request_id in self._request_ids:
            raise DuplicateRequest(
                f"Request '{request_id}' is in flight already: wait for it, or choose another id."
            )
        if len(self._request_ids) >= self._max_in_flight:
            raise Overloaded(
                f"{self._max_in_flight} requests are in flight, and no more are taken on."
            )
        self._request_ids.add(request_id)
        self._idle.clear()
        try:
            yield
        finally:
            self._request_ids.discard(request_id)
            if not self._request_ids:
                self._idle.set()

    def drain(self, *, refuses: bool) -> None:
        """`refuses`: whoever comes from now on. Else nobody does, and who is here is taken on."""
        self.is_draining = True
        self._refuses = refuses

    async def idle(self) -> None:
        """Returns when nothing is in flight."""
        await self._idle.wait()
