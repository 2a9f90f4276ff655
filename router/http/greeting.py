"""Takes connections for an HTTP server and speaks TLS with them first: bounded in time and number.
Who takes long over it keeps nobody else out: of too many, the one that has taken longest goes.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final

logger = logging.getLogger(__name__)

HANDSHAKE_S: Final = 10.0
MAX_GREETINGS: Final = 256
_CLOSING_S: Final = 5.0  # for the other end to say goodbye, too
_NO_FILE_S: Final = 0.5  # until another connection is tried, if there was no file for one

Context = Callable[[], ssl.SSLContext]  # what is shown to a connection that comes now


class TlsListener:
    """Takes connections until it is closed. Each has a protocol of its own once it speaks TLS."""

    def __init__(
        self, bound: socket.socket, protocol: Callable[[], asyncio.Protocol], context: Context
    ) -> None:
        """Needs a running loop."""
        bound.setblocking(False)
        self._bound = bound
        self._protocol = protocol
        self._context = context
        self._greetings: dict[socket.socket, asyncio.Task[None]] = {}  # in the order they came in
        self._accepting = asyncio.create_task(self._accept(), name="accept")

    def close(self) -> None:
        """Takes no more, and ends those that do not speak TLS yet."""
        self._accepting.cancel()
        self._bound.close()
        for each in tuple(self._greetings):
            _hang_up(each)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                came, _ = await loop.sock_accept(self._bound)
            except OSError as error:
                logger.debug("no connection was taken: %s", error)
                await asyncio.sleep(_NO_FILE_S)
                continue
            self._greetings[came] = asyncio.create_task(self._greet(came))
            if len(self._greetings) > MAX_GREETINGS:
                _hang_up(next(iter(self._greetings)))

    async def _greet(self, came: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol,
                came,
                ssl=self._context(),
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=_CLOSING_S,
            )
        except OSError as error:  # also what ssl raises, and what is late
            logger.debug("no TLS was spoken: %s", error)
            _hang_up(came)
        finally:
            del self._greetings[came]


def _hang_up(came: socket.socket) -> None:
    """Whoever has the connection learns of it as of the other end's going."""
    with contextlib.suppress(OSError):
        came.shutdown(socket.SHUT_RDWR)
