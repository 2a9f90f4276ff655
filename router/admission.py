"""Admits requests to the router: a bound, one request an id, and none while it drains."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.errors import Draining, DuplicateRequest, Overloaded


class Admission:
    """The requests in flight, by id."""

    # NOTE: an id may be there twice: its stream was lost, which is noticed later than its client
    # has come back.

    def __init__(self, max_in_flight: int) -> None:
        self._max_in_flight = max_in_flight
        self._request_ids: Counter[str] = Counter()
        self._num_in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.is_draining = False
        self._refuses = False

    @property
    def num_in_flight(self) -> int:
        return self._num_in_flight

    @contextmanager
    def admit(self, request_id: str, *, again: bool = False) -> Iterator[None]:
        """Has a request in flight for as long as the scope lasts. `again`: it was begun before."""
        if self._refuses:
            raise Draining("This router is draining: send the request to another one.")
        if request_id in self._request_ids and not again:
            raise DuplicateRequest(
                f"Request '{request_id}' is in flight already: wait for it, or choose another id."
            )
        if self._num_in_flight >= self._max_in_flight:
            raise Overloaded(
                f"{self._max_in_flight} requests are in flight, and no more are taken on."
            )
        self._request_ids[request_id] += 1
        self._num_in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_in_flight -= 1
            self._request_ids[request_id] -= 1
            if not self._request_ids[request_id]:
                del self._request_ids[request_id]
            if not self._num_in_flight:
                self._idle.set()

    def drain(self, *, refuses: bool) -> None:
        """`refuses`: whoever comes from now on. Else nobody does, and who is here is taken on."""
        self.is_draining = True
        self._refuses = refuses

    async def idle(self) -> None:
        """Returns when nothing is in flight."""
        await self._idle.wait()
