"""Where text is tokenised and hashed: a few threads beside the event loop, and a bounded queue.

Knows neither tokenizer nor hash: it runs what it is given.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from cluster.errors import Overloaded

P = ParamSpec("P")
R = TypeVar("R")


class TextThreads:
    def __init__(self, *, num_threads: int = 2, max_waiting: int = 256) -> None:
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix="text")
        self._max_waiting = max_waiting
        self._places = threading.BoundedSemaphore(num_threads + max_waiting)

    async def run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs blocking work in a thread. What has begun ends there, even if nobody waits."""
        if not self._places.acquire(blocking=False):
            raise Overloaded(
                f"{self._max_waiting} prompts wait to be tokenised, and no more are taken on."
            )
        future = self._executor.submit(work, *args, **kwargs)
        future.add_done_callback(lambda _: self._places.release())
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
