"""The calls in progress: how many, a wait for the last of them, and the end of all. What draining
needs."""

import asyncio
from types import TracebackType
from typing import Any


class OpenCalls:
    """Enter it for each call, in the task that serves it: `with calls: ...`."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self.is_draining = False  # new ones are refused, by whoever enters them
        self.is_cut_off = False  # they are cancelled, by us
        self._none = asyncio.Event()
        self._none.set()

    @property
    def num(self) -> int:
        return len(self._tasks)

    def cut_off(self) -> None:
        """Cancels those in progress; whoever serves them says why."""
        self.is_cut_off = True
        for task in self._tasks:
            task.cancel()

    async def none(self) -> None:
        """Returns when no call is in progress."""
        await self._none.wait()

    def __enter__(self) -> None:
        self._tasks.add(_this_task())
        self._none.clear()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._tasks.discard(_this_task())
        if not self._tasks:
            self._none.set()


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task
