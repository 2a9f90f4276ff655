"""TLS for the connections of an HTTP server, before they say anything: bounded in time and number.
Who takes long over it keeps nobody else out: of too many, the one that has taken longest goes.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import Final

logger = logging.getLogger(__name__)

HANDSHAKE_S: Final = 10.0
MAX_GREETINGS: Final = 256
_CLOSING_S: Final = 5.0  # for the other end to say goodbye, too


class Greetings:
    """The connections on which TLS is not spoken yet."""

    def __init__(
        self, protocol: Callable[[], asyncio.Protocol], context: Callable[[], ssl.SSLContext]
    ) -> None:
        """`protocol`: for a connection on which it is; `context`: what is shown now."""
        self.protocol = protocol
        self.context = context
        self._open: dict[_Greeting, None] = {}  # in the order in which they came

    def greeting(self) -> "_Greeting":
        """Makes the protocol of a connection that has just come."""
        return _Greeting(self)

    def came(self, greeting: "_Greeting") -> None:
        self._open[greeting] = None
        if len(self._open) > MAX_GREETINGS:
            next(iter(self._open)).abort()

    def went(self, greeting: "_Greeting") -> None:
        self._open.pop(greeting, None)

    def abort(self) -> None:
        for greeting in tuple(self._open):
            greeting.abort()


class _Greeting(asyncio.Protocol):
    """One connection until TLS is spoken on it; then another protocol has it."""

    def __init__(self, greetings: Greetings) -> None:
        self._greetings = greetings
        self._early = bytearray()  # what came right behind the handshake
        self._is_eof = False
        self._plain: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None  # kept: the loop itself would not

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if self._plain is None:
            self._plain = transport
            transport.pause_reading()  # the handshake is not for us to read
            self._greetings.came(self)
            self._task = asyncio.get_running_loop().create_task(self._greet(transport))

    def data_received(self, data: bytes) -> None:
        self._early += data

    def eof_received(self) -> None:
        self._is_eof = True

    def abort(self) -> None:
        self._greetings.went(self)
        if self._plain is not None:
            self._plain.abort()

    async def _greet(self, transport: asyncio.Transport) -> None:
        try:
            secured = await asyncio.get_running_loop().start_tls(
                transport,
                self,
                self._greetings.context(),
                server_side=True,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=_CLOSING_S,
            )
        except OSError as error:  # also what ssl raises, and what is late
            logger.debug("no TLS was spoken: %s", error)
            transport.abort()
            return
        finally:
            self._greetings.went(self)
        if secured is None or secured.is_closing():
            return
        protocol = self._greetings.protocol()
        secured.set_protocol(protocol)
        protocol.connection_made(secured)
        if self._early:
            protocol.data_received(bytes(self._early))
        if self._is_eof and not secured.is_closing():
            protocol.eof_received()
