"""The router's end of a connection of frames to one life of a worker. Leaving a call cancels it by
a frame; by the end of the connection answers are lost to us, and go on where they may.
"""

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import Awaitable, Callable
from math import inf
from types import TracebackType
from typing import Final, Self

from cluster.addresses import Endpoint
from cluster.authority import Credentials
from cluster.blame import DEADLINE_MARGIN_S
from cluster.channel import Channel
from cluster.errors import AnswerMoved, DeadlineExceeded, PenstockError, WorkerLost
from cluster.frames.connection import FrameConnection
from cluster.frames.invitation import Invitation, new_nonce
from cluster.frames.wire import (
    ALIVE_S,
    CREDIT,
    MAX_PAYLOAD_BYTES,
    START,
    WINDOW_BYTES,
    FrameKind,
    cost,
    in_parts,
)
from cluster.status import from_status_bytes
from cluster.tls import client_context
from penstock.v1 import worker_pb2 as pb

_CONNECT_S: Final = 5.0
_LAST_STREAM: Final = (1 << 32) - 1  # then they are counted anew
_FRAMES: Final = ("penstock.v1.Decode", "Frames")


class FrameChannel:
    """One connection, by whose end all its calls end. Never made again: the next is another."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._connection: FrameConnection | None = None
        self._calls: dict[int, FrameExchange] = {}
        self._is_sending = asyncio.Lock()  # a large request: they come in one after the other
        self._streams = itertools.count(1)
        self._welcome: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._beat: asyncio.TimerHandle | None = None
        self.is_open = False
        self.outlives = False  # answers may go on without us
        self.is_leaving = False  # and are to
        self.ended = asyncio.Event()

    async def connect(self, channel: Channel, credentials: Credentials) -> None:
        """Asks the worker for an invitation over `channel`, and accepts it.

        Raises UnsupportedFeature where the worker knows no frames, and whatever else a call raises;
        WorkerLost where nobody who knows the invitation listens.
        """
        said = await channel.unary(*_FRAMES, pb.FramesRequest(), timeout_s=_CONNECT_S)
        invitation, nonce = Invitation(said.name, said.secret), new_nonce()
        identity = credentials.at(self.address)
        host = Endpoint.parse(self.address).host
        try:
            async with asyncio.timeout(_CONNECT_S):
                _, self._connection = await asyncio.get_running_loop().create_connection(
                    lambda: FrameConnection(self._take, self._lost),
                    host,
                    said.port,
                    ssl=None if identity is None else client_context(identity),
                )
                self._connection.write(FrameKind.HELLO, 0, invitation.hello(nonce))
                welcome = await self._welcome
        except (OSError, TimeoutError) as error:
            self.close()
            raise WorkerLost(f"No connection for tokens to {host}:{said.port}: {error}") from error
        if not invitation.is_welcome(welcome, nonce):
            self.close()
            raise WorkerLost(f"Whoever listens at {host}:{said.port} has not invited us.")
        self.is_open, self.outlives = True, said.outlives
        if self.outlives:
            self._say_alive()

    def stream(self, request: bytes, *, timeout_s: float | None) -> "FrameExchange":
        """Many answers to one request, as bytes. Starts with `async with`."""
        return FrameExchange(self, next(self._streams) & _LAST_STREAM, request, timeout_s)

    def attach(self, request: bytes, *, timeout_s: float | None) -> "FrameExchange":
        """The rest of those to an earlier one: `request` is a `Reattach`."""
        stream = next(self._streams) & _LAST_STREAM
        return FrameExchange(self, stream, request, timeout_s, is_attached=True)

    def close(self) -> None:
        """Ends it after what was said, cancels among it."""
        self.is_open = False
        if self._connection is not None:
            self._connection.close()

    def _say_alive(self) -> None:
        """The worker lets answers of who is silent go on without him, and gives them up later."""
        self._write(FrameKind.ALIVE, 0)
        self._beat = asyncio.get_running_loop().call_later(ALIVE_S, self._say_alive)

    def _write(self, kind: FrameKind, stream: int, payload: bytes = b"") -> None:
        """Says it, if there is still somebody to hear it."""
        if self._connection is not None and not self._connection.is_lost:
            self._connection.write(kind, stream, payload)

    def _cancel(self, stream: int) -> None:
        """Unless it is to go on without us."""
        if not self.is_leaving:
            self._write(FrameKind.CANCEL, stream)

    def _take(self, kind: int, stream: int, payload: bytes) -> None:
        if not self._welcome.done():
            if kind != FrameKind.WELCOME:
                raise ValueError("It said something before it said who it is.")
            self._welcome.set_result(payload)
        elif (call := self._calls.get(stream)) is not None:
            call._take(kind, payload)

    def _lost(self) -> None:
        self.is_open = False
        if self._beat is not None:
            self._beat.cancel()
        self.ended.set()
        if not self._welcome.done():
            self._welcome.set_exception(ConnectionError("it hung up"))
            self._welcome.exception()  # who wanted to join may have left
        for call in tuple(self._calls.values()):
            call._fail(WorkerLost(f"The connection to {self.address} was lost."))


class FrameExchange:
    """One streaming call, as `cluster.channel.Exchange`. Leaving its scope cancels it."""

    __slots__ = (
        "_channel",
        "_failure",
        "_is_attached",
        "_is_over",
        "_parts",
        "_request",
        "_stream",
        "_timeout_s",
        "_timer",
        "_unacknowledged",
        "_until",
        "_waiter",
        "_waiting",
        "num_received",
    )

    def __init__(
        self,
        channel: FrameChannel,
        stream: int,
        request: bytes,
        timeout_s: float | None,
        *,
        is_attached: bool = False,
    ) -> None:
        self._channel = channel
        self._stream = stream
        self._request = request
        self._is_attached = is_attached
        self._timeout_s = timeout_s
        self._waiting: deque[bytes] = deque()
        self._parts: list[bytes] = []  # of a message that is not whole
        self._unacknowledged = 0
        self._failure: PenstockError | None = None
        self._is_over = False
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._until: float | None = None  # the deadline, by the loop's clock
        self.num_received = 0

    async def pass_to(self, take: Callable[[bytes], Awaitable[None]]) -> None:
        """Awaits `take` with every message, until the peer has ended the call well. The rest of a
        large request leaves first."""
        if self._request:
            await self._send_rest()
        waiting = self._waiting
        while True:
            while waiting:
                data = waiting.popleft()
                self.num_received += 1
                await take(data)
                self._taken(cost(data))
            if self._is_over:
                if self._failure is not None:
                    raise self._failure
                return
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def cancel(self) -> None:
        self._fail(WorkerLost(f"The connection to {self._channel.address} is closed."))

    async def __aenter__(self) -> Self:
        channel, connection = self._channel, self._channel._connection
        if connection is None or connection.is_lost:
            raise WorkerLost(f"The connection to {channel.address} was lost.")
        channel._calls[self._stream] = self
        seconds = self._timeout_s
        if seconds is not None:
            seconds, loop = max(0.0, seconds), asyncio.get_running_loop()
            self._until = loop.time() + seconds
            self._timer = loop.call_at(self._until, self._be_late)
            seconds -= min(DEADLINE_MARGIN_S, 0.1 * seconds)  # so that it can say what happened
        if self._is_attached:
            connection.write(FrameKind.ATTACH, self._stream, self._request)
            self._request = b""
            return self
        head = START.pack(inf if seconds is None else seconds, len(self._request))
        first = MAX_PAYLOAD_BYTES - len(head)
        connection.write(FrameKind.START, self._stream, head + self._request[:first])
        self._request = self._request[first:]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._channel._calls.pop(self._stream, None)
        if self._timer is not None:
            self._timer.cancel()
        if not self._is_over:
            self._channel._cancel(self._stream)

    async def _send_rest(self) -> None:
        """Lets others say something after each of its frames; waits while the peer does not read,
        until the deadline at most."""
        connection, request, self._request = self._channel._connection, self._request, b""
        assert connection is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._until), self._channel._is_sending:
                for each in in_parts(request, FrameKind.MORE, FrameKind.MORE, self._stream):
                    connection.write_frames(each)
                    await asyncio.sleep(0)
                    await connection.writable()

    def _taken(self, num_bytes: int) -> None:
        self._unacknowledged += num_bytes
        if 2 * self._unacknowledged >= WINDOW_BYTES:
            credit = CREDIT.pack(self._unacknowledged)
            self._channel._write(FrameKind.CREDIT, self._stream, credit)
            self._unacknowledged = 0

    def _take(self, kind: int, payload: bytes) -> None:
        match kind:
            case FrameKind.MESSAGE:
                if self._parts:
                    payload = b"".join((*self._parts, payload))
                    self._parts.clear()
                self._waiting.append(payload)
            case FrameKind.PART:
                self._parts.append(payload)
                return
            case FrameKind.END:
                self._is_over = True
                if payload:
                    self._failure = from_status_bytes(payload)
                if isinstance(self._failure, AnswerMoved):
                    self._waiting.clear()  # it is said again, to another call
            case _:
                raise ValueError(f"A host sends no frame {kind}.")
        self._wake()

    def _be_late(self) -> None:
        self._fail(DeadlineExceeded("call"))

    def _fail(self, failure: PenstockError) -> None:
        """Whatever came before is passed on first."""
        if not self._is_over:
            self._failure = failure
            self._channel._cancel(self._stream)  # for the peer it goes on, if it still hears us
            self._is_over = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
