"""Asks a router a question, once or again and again, in a thread: the screen goes on meanwhile."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from penstock.cli.top.inside import Unasked

Said = TypeVar("Said")


class Asking(Generic[Said]):
    """Holds what was said last."""

    def __init__(
        self, ask: Callable[[], Said] | None, otherwise: str = "", *, every_s: float = 0.0
    ) -> None:
        """`ask` may block. None: nobody can be asked, as `otherwise` says. `every_s`: until it is
        asked again; 0: it is asked once."""
        self._ask = ask
        self._every_s = every_s
        self.said: Said | None = None
        self.missing = "" if ask else otherwise  # why nothing newer is known

    async def run(self) -> None:
        while self._ask is not None:
            try:
                self.said, self.missing = await asyncio.to_thread(self._ask), ""
            except Unasked as error:
                self.missing = str(error)
            if not self._every_s:
                return
            await asyncio.sleep(self._every_s)
