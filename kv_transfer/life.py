"""The life of another process, as an end that can be waited for."""

import asyncio
from collections.abc import Callable


class Life:
    """Ends once. Belongs to the event loop that it is used on."""

    __slots__ = ("_callbacks", "_ended", "is_watched")

    def __init__(self) -> None:
        self.is_watched = False  # its process is seen from here: nothing else tells its end
        self._ended = asyncio.Event()
        self._callbacks: list[Callable[[], None]] = []

    @property
    def is_over(self) -> bool:
        return self._ended.is_set()

    async def wait(self) -> None:
        """Returns when the process is dead."""
        await self._ended.wait()

    def on_end(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls back once on the event loop, at once if it is over; returns how to take it back."""
        if self.is_over:
            callback()
            return lambda: None
        self._callbacks.append(callback)
        return lambda: self._forget(callback)

    def end(self) -> None:
        """Called by the transport, which saw the process die."""
        self._ended.set()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback()
            except Exception as error:  # one owner's bug must not leave the others waiting
                context = {"message": "A process died, and so did a callback", "exception": error}
                asyncio.get_running_loop().call_exception_handler(context)

    def _forget(self, callback: Callable[[], None]) -> None:
        if callback in self._callbacks:
            self._callbacks.remove(callback)
