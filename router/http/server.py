"""Listens for HTTP/1.1, and stops in bounded time. The one door to uvicorn, of which it takes the
protocol: signals, the log and the end of this process are not its own.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from cluster.addresses import Endpoint
from cluster.errors import InvalidRequest, Overloaded, PenstockError, StartupError
from cluster.host import max_connections
from cluster.open_calls import OpenCalls
from cluster.rpc import LAST_WORDS_S
from router.http.call import ABORT
from router.http.errors import HttpRefusal, failure_of
from router.http.greeting import Context, TlsListener

_HEAD_S: Final = 20.0  # from a connection, or a request's first byte, to the end of its headers
_IDLE_S: Final = 75.0  # between two requests: longer than clients keep connections
_MAX_HEAD_BYTES: Final = 64 << 10
_MAX_HEADERS: Final = 128
_BACKLOG: Final = 2048


class _State(ServerState):
    """What all connections share."""

    def __init__(self, max_connections: int) -> None:
        super().__init__()
        self.max_connections = max_connections
        self.none_left = asyncio.Event()


class _RestOfRequest:
    """What a parser tells of a request whose head another one has read."""

    def __init__(self, connection: HttpToolsProtocol) -> None:
        self.on_body = connection.on_body
        self.on_message_complete = connection.on_message_complete


class _HttpConnection(HttpToolsProtocol):
    """uvicorn's, with bounds for who says little, slowly or too much before a request is one; and
    one request at a time: what comes behind it before it is answered is not read, and ends the
    connection with the answer."""

    server_state: _State

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._late: asyncio.TimerHandle | None = None
        self._num_head_bytes = 0
        self._is_in_head = False
        self._is_deaf = False  # takes no notice of what comes

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.server_state.none_left.clear()
        if len(self.connections) > self.server_state.max_connections:
            self._refuse(Overloaded("Too many connections are open: come again later."))
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            self._pass_over_upgrade(data[upgrade.args[0] :])
        except HttpParserError:
            if not self._is_deaf:
                self._refuse(InvalidRequest("request", "This is no HTTP/1.1 request."))
        if self._is_in_head:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > _MAX_HEAD_BYTES:
                self._refuse(HttpRefusal(431, "headers_too_large", "There are too many headers."))
        if self._is_between and not self._is_deaf:
            self._expect_head()

    def on_message_begin(self) -> None:
        if not self._is_between:
            # Were it read and kept, nobody would hear that the caller of the first one leaves.
            self._is_deaf, self.cycle.keep_alive = True, False
            raise ValueError("One request at a time.")  # the parser ends with it
        super().on_message_begin()
        self._is_in_head, self._num_head_bytes = True, 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= _MAX_HEADERS:
            raise ValueError("There are too many headers.")  # the parser ends with it
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._end_late()
        self._is_in_head = False
        extensions: Any = {ABORT: self.transport.abort}
        self.cycle.scope["extensions"] = extensions

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_late()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        if not self.connections:
            self.server_state.none_left.set()

    def _pass_over_upgrade(self, rest: bytes) -> None:
        """Goes on in HTTP/1.1, as who offers HTTP/2 expects (Java's client does so with each
        request). The parser leaves out the body then, and would take it for another request."""
        framing = (b"content-length", b"transfer-encoding")
        lines = [b"%b: %b" % header for header in self.headers if header[0] in framing]
        head = [b"POST / HTTP/1.1", b"connection: close", *lines, b"", b""]
        self.cycle.keep_alive = False
        self.parser = HttpRequestParser(_RestOfRequest(self))
        self.data_received(b"\r\n".join(head) + rest)

    @property
    def _is_between(self) -> bool:
        """No request is in progress."""
        return self.cycle is None or self.cycle.response_complete

    def _expect_head(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(_HEAD_S, self._refuse_late)

    def _end_late(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _refuse_late(self) -> None:
        self._late = None
        if self._is_between:
            self.transport.abort()

    def _refuse(self, error: PenstockError) -> None:
        """Ends the connection; with a word, unless one is being said already."""
        self._is_deaf = True
        self._end_late()
        if not self._is_between:
            self.transport.abort()
            return
        told = failure_of(error)
        body = told.body
        lines = [b"HTTP/1.1 %d Refused" % told.status, b"content-type: application/json"]
        lines += [name + b": " + value for name, value in told.headers]
        lines += [b"content-length: %d" % len(body), b"connection: close", b"", body]
        self.transport.write(b"\r\n".join(lines))
        # Closed with bytes unread it would be reset, and the word lost on its way. TLS says goodbye
        # by itself, and waits for the other's.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()
        self._late = self.loop.call_later(LAST_WORDS_S, self.transport.abort)


class HttpServer:
    """`async with` starts it, and ends every call at exit, in bounded time; each caller is told."""

    def __init__(
        self,
        app: Callable[..., Any],
        open_calls: OpenCalls,
        *,
        address: str,
        tls: Context | None = None,
    ) -> None:
        """`tls`: what is shown to a connection that comes now; None: all is in clear text."""
        self._app = app
        self._tls = tls
        self._open_calls = open_calls
        self._asked_address = address
        self.address = address  # with the port really bound, once started
        self._server: asyncio.Server | TlsListener | None = None

    async def start(self) -> None:
        # Its sentences are ours to say, and hostile bytes would fill the log.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        config = Config(
            self._app,
            http=_HttpConnection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_keep_alive=int(_IDLE_S),
        )
        config.load()
        self._open_calls.is_cut_off = False  # by an earlier server of theirs
        self._state = _State(max_connections())
        bound = _bind(self._asked_address)
        self.address = f"{self._asked_address.rpartition(':')[0]}:{bound.getsockname()[1]}"

        def connection() -> _HttpConnection:
            return _HttpConnection(config=config, server_state=self._state, app_state={})

        if self._tls is not None:
            self._server = TlsListener(bound, connection, self._tls)
            return
        self._server = await asyncio.get_running_loop().create_server(
            connection, sock=bound, backlog=_BACKLOG
        )

    def close_door(self) -> None:
        """Takes no connection from now on; what is in progress goes on until `stop`, and each
        connection ends with it."""
        if self._server is not None:
            self._server.close()
            for connection in tuple(self._state.connections):
                connection.shutdown()

    async def stop(self) -> None:
        """Cuts off what runs. Whoever reads is told so."""
        if self._server is None:
            return
        self.close_door()
        self._open_calls.cut_off()
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                if self._state.connections:
                    await self._state.none_left.wait()
        except TimeoutError:
            for connection in tuple(self._state.connections):
                connection.transport.abort()
        await self._open_calls.none()
        self._server = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()


def _bind(address: str) -> socket.socket:
    try:
        endpoint = Endpoint.parse(address)
        found = socket.getaddrinfo(*endpoint, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, where = found[0]
        is_dual = family is socket.AF_INET6 and endpoint.is_any
        bound = socket.create_server(
            where[:2], family=family, backlog=_BACKLOG, dualstack_ipv6=is_dual
        )
    except OSError as error:
        raise StartupError(
            f"Could not listen for HTTP on '{address}' ({error.strerror or error}): is the port"
            " taken, or the host not this one's? Give another address, port 0 for any, or none."
        ) from error
    # As gRPC's: who is gone without a word is noticed.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 2)):
        if (number := getattr(socket, option, None)) is not None:
            bound.setsockopt(socket.IPPROTO_TCP, number, value)
    return bound
