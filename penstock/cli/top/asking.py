"""Asks a router the same question again and again, in a thread: the screen goes on meanwhile."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from penstock.cli.top.inside import Unasked

Said = TypeVar("Said")


class Asking(Generic[Said]):
    """Holds what was said last."""

    def __init__(self, ask: Callable[[], Said] | None, otherwise: str) -> None:
        """`ask` may block. None: nobody can be asked, as `otherwise` says."""
        self._ask = ask
        self.said: Said | None = None
        self.missing = "" if ask else otherwise  # why nothing newer is known

    async def run(self, every_s: float) -> None:
        """Asks until it is cancelled; once, where `every_s` is 0."""
        while self._ask is not None:
            try:
                self.said, self.missing = await asyncio.to_thread(self._ask), ""
            except Unasked as error:
                self.missing = str(error)
            if not every_s:
                return
            await asyncio.sleep(every_s)
