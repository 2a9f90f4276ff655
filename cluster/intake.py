"""Takes in the bodies of requests: one at a time from each connection. Knows no gRPC.

A body is copied on its way in by threads that every connection needs, and the event loop with
them: 256 of 2 MiB at once hold everybody for half a second and take half a GiB. What nobody has
asked for yet waits at its sender.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")

# Whose body does not come holds up the others of its connection, which may be a proxy's, for so
# long. Bodies that come slowly hold nobody up when many come together.
TURN_S = 0.1


class Intake:
    def __init__(self, *, turn_s: float = TURN_S) -> None:
        self._turn_s = turn_s
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def take(self, peer: str, read: Callable[[], Awaitable[T]]) -> T:
        """Reads when it is its turn among those of this connection."""
        turn = self._turns.setdefault(peer, asyncio.Semaphore(1))
        await turn.acquire()
        is_over = False

        def end() -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                turn.release()

        late = asyncio.get_running_loop().call_later(self._turn_s, end)
        try:
            return await read()
        finally:
            late.cancel()
            end()
