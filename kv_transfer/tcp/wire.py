"""A TCP connection that never waits by itself, plain or in TLS, and steps that wait for it.

Steps are a generator that yields the selector's event it waits for: the receiver's thread runs
those of many connections side by side, whoever dials runs its own to the end. In TLS both ends show
a certificate of the cluster's own authority.
"""

import hashlib
import selectors
import socket
import ssl
from collections.abc import Generator, Iterable
from selectors import EVENT_READ, EVENT_WRITE
from typing import Protocol, TypeVar

from cluster.authority import Credentials, TlsIdentity
from cluster.lateness import Limit
from cluster.tls import client_context, server_context

Result = TypeVar("Result")
Steps = Generator[int, None, Result]

IOV_MAX = 1024  # buffers in one call, on every Linux
JOIN_BYTES = 64 * 1024  # what TLS encrypts in one call: it copies anyway
KEEPALIVE_S = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}


class Tls:
    """Both roles of one worker. Names in certificates are not looked at: who is at the other end
    is proven by the cluster's key, over what `binding` returns."""

    def __init__(self, identity: TlsIdentity) -> None:
        self._server = server_context(identity)
        self._client = client_context(identity)
        self._own = ssl.PEM_cert_to_DER_cert(identity.certificate.decode())

    def wrap(self, stream: socket.socket, *, is_server: bool) -> ssl.SSLSocket:
        context = self._server if is_server else self._client
        return context.wrap_socket(stream, server_side=is_server, do_handshake_on_connect=False)

    def binding(self, stream: ssl.SSLSocket, *, is_server: bool) -> bytes:
        """Digests both certificates: whoever stands in between has another one at one end."""
        theirs = stream.getpeercert(binary_form=True) or b""
        server, client = (self._own, theirs) if is_server else (theirs, self._own)
        digests = hashlib.sha256(server).digest() + hashlib.sha256(client).digest()
        return hashlib.sha256(digests).digest()


class TlsWhereDue:
    """Speaks TLS beyond loopback, where the cluster has an authority."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._tls: Tls | None = None

    def at(self, endpoint: str) -> Tls | None:
        """Gives it to who listens there, and who dials it."""
        identity = self._credentials.at(endpoint)
        if identity is not None and self._tls is None:
            self._tls = Tls(identity)
        return None if identity is None else self._tls


class Views:
    """Keeps what is left of some buffers, in order."""

    __slots__ = ("_next", "_views", "num_bytes")

    def __init__(self, views: Iterable[memoryview]) -> None:
        self._views = list(views)
        self._next = 0
        self.num_bytes = sum(map(len, self._views))

    def some(self) -> list[memoryview]:
        """Gives as many as one call takes."""
        return self._views[self._next : self._next + IOV_MAX]

    def advance(self, num_bytes: int) -> None:
        self.num_bytes -= num_bytes
        views = self._views
        while num_bytes:
            view = views[self._next]
            if num_bytes < len(view):
                views[self._next] = view[num_bytes:]
                break
            num_bytes -= len(view)
            self._next += 1


class Wire(Protocol):
    """One connection. For one thread at a time."""

    def fileno(self) -> int: ...

    def send(self, views: list[memoryview]) -> int:
        """Bytes that were taken; zero when there is no room now. Raises OSError."""
        ...

    def receive(self, views: list[memoryview]) -> int:
        """Bytes that came; zero when there are none now. Raises OSError when there will be none."""
        ...

    @property
    def has_more(self) -> bool:
        """Tells whether bytes are here that no selector sees."""
        ...

    def expect(self, num_bytes: int) -> None:
        """A selector need not say that it is readable before so many bytes are there."""
        ...

    def secure(self) -> Steps[bytes]:
        """Secures it first of all: returns what ties a proof to this connection (32 bytes)."""
        ...

    def close(self) -> None: ...


class PlainWire:
    has_more = False

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._expected = 1

    def fileno(self) -> int:
        return self._stream.fileno()

    def send(self, views: list[memoryview]) -> int:
        try:
            return self._stream.sendmsg(views)
        except BlockingIOError:
            return 0

    def receive(self, views: list[memoryview]) -> int:
        try:
            num_bytes = self._stream.recvmsg_into(views)[0]
        except BlockingIOError:
            return 0
        return num_bytes or _closed()

    def expect(self, num_bytes: int) -> None:
        if num_bytes != self._expected:
            self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, num_bytes)
            self._expected = num_bytes

    def secure(self) -> Steps[bytes]:
        yield from ()
        return bytes(32)

    def close(self) -> None:
        self._stream.close()


class TlsWire:
    def __init__(self, stream: socket.socket, tls: Tls, *, is_server: bool) -> None:
        self._stream = tls.wrap(stream, is_server=is_server)
        self._tls = tls
        self._is_server = is_server

    @property
    def has_more(self) -> bool:
        return self._stream.pending() > 0

    def fileno(self) -> int:
        return self._stream.fileno()

    def send(self, views: list[memoryview]) -> int:
        try:
            return self._stream.send(_joined(views))
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0

    def receive(self, views: list[memoryview]) -> int:
        try:
            return self._stream.recv_into(views[0]) or _closed()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0

    def expect(self, num_bytes: int) -> None:
        """Does nothing: how long a record is, only TLS knows."""

    def secure(self) -> Steps[bytes]:
        while True:
            try:
                self._stream.do_handshake()
            except ssl.SSLWantReadError:
                yield EVENT_READ
            except ssl.SSLWantWriteError:
                yield EVENT_WRITE
            else:
                return self._tls.binding(self._stream, is_server=self._is_server)

    def close(self) -> None:
        self._stream.close()


def open_wire(stream: socket.socket, tls: Tls | None, *, is_server: bool) -> Wire:
    """Takes the socket over."""
    stream.setblocking(False)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in KEEPALIVE_S.items():
        stream.setsockopt(socket.IPPROTO_TCP, option, seconds)
    return PlainWire(stream) if tls is None else TlsWire(stream, tls, is_server=is_server)


def send_all(wire: Wire, data: bytes) -> Steps[None]:
    left = Views([memoryview(data)])
    while True:
        left.advance(wire.send(left.some()))
        if not left.num_bytes:
            return
        yield EVENT_WRITE


def receive_exactly(wire: Wire, num_bytes: int) -> Steps[bytes]:
    data = bytearray(num_bytes)
    left = Views([memoryview(data)])
    while left.num_bytes:
        left.advance(wire.receive(left.some()))
        if left.num_bytes and not wire.has_more:
            yield EVENT_READ
    return bytes(data)


def finish(wire: Wire, steps: Steps[Result], limit: Limit) -> Result:
    """Runs steps to their end. Raises TimeoutError when the limit is over."""
    with selectors.DefaultSelector() as selector:
        key = selector.register(wire, EVENT_READ)
        while True:
            try:
                event = next(steps)
            except StopIteration as end:
                result: Result = end.value
                return result
            if event != key.events:
                key = selector.modify(wire, event)
            while not selector.select(limit.pause_s()):
                pass


def _closed() -> int:
    raise ConnectionResetError("the other end closed the connection")


def _joined(views: list[memoryview]) -> memoryview | bytes:
    if len(views) == 1 or len(views[0]) >= JOIN_BYTES:
        return views[0]
    some, num_bytes = [], 0
    for view in views:
        some.append(view)
        num_bytes += len(view)
        if num_bytes >= JOIN_BYTES:
            break
    return b"".join(some)
