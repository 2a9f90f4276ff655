"""How many calls are in progress, and a wait for the last of them. What draining needs."""

import asyncio
from types import TracebackType


class OpenCalls:
    """Enter it for each call: `with calls: ...`."""

    def __init__(self) -> None:
        self.num = 0
        self.is_draining = False  # new ones are refused, by whoever enters them
        self._none = asyncio.Event()
        self._none.set()

    async def none(self) -> None:
        """Returns when no call is in progress."""
        await self._none.wait()

    def __enter__(self) -> None:
        self.num += 1
        self._none.clear()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.num -= 1
        if not self.num:
            self._none.set()
