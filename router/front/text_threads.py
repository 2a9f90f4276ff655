"""Blocking work beside the event loop: a few threads, and a bounded lane before them."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

from router.front.lane import Lane

P = ParamSpec("P")
R = TypeVar("R")

_MAX_WAITING_BYTES: Final = 64 << 20


class TextThreads:
    def __init__(
        self, *, num_threads: int = 2, max_waiting: int = 2048, largest_bytes: int = 32 << 10
    ) -> None:
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix="text")
        self._lane = Lane(
            num_places=num_threads,
            max_waiting=max_waiting,
            max_waiting_bytes=_MAX_WAITING_BYTES,
            largest_bytes=largest_bytes,
        )

    def check_room(self, num_bytes: int) -> None:
        """Raises Overloaded where so much could not even wait."""
        self._lane.check_room(num_bytes)

    async def run(
        self, num_bytes: int, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Runs work in a thread. What has begun ends there, even if nobody waits."""
        await self._lane.enter(num_bytes)
        future = asyncio.wrap_future(self._executor.submit(work, *args, **kwargs))
        future.add_done_callback(self._left)
        return await asyncio.shield(future)

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _left(self, future: "asyncio.Future[R]") -> None:
        self._lane.leave()
        if not future.cancelled():
            future.exception()  # nobody may be left to ask for it
