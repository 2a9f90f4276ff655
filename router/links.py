"""One channel to each life of a worker, and the calls that are open on it.

Knows no placement. When a worker is gone its calls end at once, as lost.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from cluster.channel import Channel, Exchange
from cluster.errors import WorkerLost
from cluster.types import Incarnation, WorkerAddress, WorkerId

GENERATE = ("penstock.v1.Decode", "Generate")

OpenChannel = Callable[[WorkerAddress], Channel]


class Link:
    """The connection to one life of a worker."""

    def __init__(self, worker: WorkerAddress, channel: Channel) -> None:
        self.worker = worker
        self.channel = channel
        self._calls: set[Exchange] = set()
        self._is_lost = False

    async def generate(
        self, request: Any, timeout_s: float | None, take: Callable[[bytes], Awaitable[None]]
    ) -> None:
        """Has the worker serve a request, and awaits `take` with every message, unparsed."""
        if self._is_lost:
            raise self._lost()
        exchange = self.channel.stream(*GENERATE, request, timeout_s=timeout_s, is_raw=True)
        self._calls.add(exchange)
        try:
            async with exchange:
                await exchange.pass_to(take)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._is_lost and task is not None and not task.cancelling():
                raise self._lost() from None  # it was the call that was cancelled, not we
            raise
        finally:
            self._calls.discard(exchange)

    async def lose(self) -> None:
        """The worker is gone: ends what is open, and the connection."""
        self._is_lost = True
        for call in self._calls:
            call.cancel()
        await self.channel.close()

    def _lost(self) -> WorkerLost:
        return WorkerLost(f"Worker '{self.worker.worker_id}' is gone.")


class Links:
    """The links by worker."""

    def __init__(self, open_channel: OpenChannel) -> None:
        self._open_channel = open_channel
        self._links: dict[WorkerId, Link] = {}

    def open(self, worker: WorkerAddress) -> Link:
        link = Link(worker, self._open_channel(worker))
        self._links[worker.worker_id] = link
        return link

    def get(self, worker: WorkerId) -> Link:
        if (link := self._links.get(worker)) is None:
            raise WorkerLost(f"Worker '{worker}' has left.")
        return link

    async def lose(self, worker: WorkerId, incarnation: Incarnation) -> None:
        link = self._links.get(worker)
        if link is not None and link.worker.incarnation == incarnation:
            del self._links[worker]
            await link.lose()

    async def close(self) -> None:
        for link in list(self._links.values()):
            await link.lose()
        self._links.clear()
