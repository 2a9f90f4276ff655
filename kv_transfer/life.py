"""The life of another process, as an end that can be waited for; one of this machine is watched."""

import asyncio
import os
import select
from collections.abc import Callable
from typing import NamedTuple, Self

from cluster.errors import TransferFailed


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


class ProcessAddress(NamedTuple):
    """`pid_namespace` is there because a pid means nothing in another one, `boot_id` because
    the namespace's number means nothing on another machine."""

    pid: int
    pid_namespace: int
    boot_id: str

    @classmethod
    def own(cls) -> Self:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot_id = file.read().strip()
        return cls(os.getpid(), os.stat("/proc/self/ns/pid").st_ino, boot_id)

    @property
    def is_here(self) -> bool:
        """Tells whether its death can be seen from here."""
        return self[1:] == ProcessAddress.own()[1:]


class ProcessWatch:
    """Ends a Life when the process does. Belongs to the event loop that it is made on."""

    def __init__(
        self, process: ProcessAddress, life: Life, *, is_it: Callable[[], bool] = lambda: True
    ) -> None:
        """`is_it` is asked once the watch stands: whether the pid is still the process that was
        meant. Raises TransferFailed where the process is dead."""
        try:
            self._pidfd = os.pidfd_open(process.pid)
        except OSError as error:
            raise TransferFailed(f"Process {process.pid} is dead.") from error
        if not is_it() or select.select([self._pidfd], [], [], 0)[0]:
            os.close(self._pidfd)
            raise TransferFailed(f"Process {process.pid} is dead.")
        self._life = life
        life.is_watched = True
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self._on_exit)  # readable when all of it is dead

    def close(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _on_exit(self) -> None:
        self.close()
        self._life.end()
