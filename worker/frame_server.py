"""The worker's end of connections of frames: one streaming call, served over them as over gRPC."""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any

from google.protobuf.message import Message

from cluster.addresses import Endpoint
from cluster.authority import TlsIdentity
from cluster.blame import blamed, cut_off
from cluster.channel import INTERNAL_MESSAGE_BYTES, methods
from cluster.errors import PeerError, PenstockError
from cluster.frames.connection import FrameConnection
from cluster.frames.invitation import Invitations
from cluster.frames.wire import CREDIT, START, WINDOW_BYTES, FrameKind, cost, in_parts, unpacked
from cluster.open_calls import OpenCalls
from cluster.rpc import LARGE_BYTES, LAST_WORDS_S, Call, encoded, parsed
from cluster.status import status_bytes
from cluster.tls import server_context
from penstock.v1 import worker_pb2 as pb

_HELLO_S = 5.0  # for who has connected to show its invitation; as long for TLS, where it is due
_MAX_STRANGERS = 64  # who have not yet
_MAX_CALLS = 1 << 16  # of a connection

Serve = Callable[[Any, "FrameCall"], Awaitable[None]]


class FrameCall:
    """One call as its handler sees it; as `cluster.rpc.Call`."""

    __slots__ = (
        "_connection",
        "_has_credit",
        "_left",
        "_stream",
        "deadline",
        "phase",
        "task",
        "tokens_emitted",
    )

    def __init__(self, connection: FrameConnection, stream: int, deadline: float | None) -> None:
        self._connection = connection
        self._stream = stream
        self._left = WINDOW_BYTES
        self._has_credit: asyncio.Event | None = None  # while somebody waits for it
        self.deadline = deadline  # time.monotonic(); None is without end
        self.phase = "request"
        self.tokens_emitted = 0
        self.task: asyncio.Task[None] | None = None

    @property
    def remaining_s(self) -> float | None:
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    async def send(self, message: Message | bytes) -> None:
        """Waits while the peer does not read."""
        connection = self._connection
        while self._left <= 0 and not connection.is_lost:
            self._has_credit = asyncio.Event()
            await self._has_credit.wait()
        while not connection.is_writable:
            await connection.writable()
        if connection.is_lost:
            raise PeerError("The caller has ended the call.")
        data = encoded(message)
        self._left -= cost(data)
        for each in in_parts(data, FrameKind.MESSAGE, FrameKind.PART, self._stream):
            connection.write_frames(each)

    def credit(self, num_bytes: int) -> None:
        self._left = min(WINDOW_BYTES, self._left + num_bytes)
        if self._has_credit is not None:
            self._has_credit.set()

    def end(self, failure: PenstockError | None) -> None:
        payload = b"" if failure is None else status_bytes(failure)
        self._connection.write(FrameKind.END, self._stream, payload)


@dataclass(slots=True, eq=False)
class _Request:
    """One that is on its way in."""

    deadline: float | None
    num_bytes: int
    data: bytearray = field(default_factory=bytearray)


class FrameServer:
    """Listens for routers that were invited."""

    def __init__(self, service: str, method: str, serve: Serve) -> None:
        """One method, that streams its answers."""
        self._request_type = methods(service)[method].request_type
        self._serve = serve
        self.invitations = Invitations(time.monotonic)
        self._strangers: dict[_Guest, None] = {}  # in the order in which they came
        self._guests: set[_Guest] = set()  # who have shown their invitation
        self._server: asyncio.Server | None = None
        self.port = 0  # once started

    async def start(self, host: str, identity: TlsIdentity | None, open_calls: OpenCalls) -> None:
        """Beyond loopback under TLS, where there is an identity. `open_calls`: of the service,
        whichever way its calls come."""
        self._open_calls = open_calls
        context = None if identity is None else server_context(identity)
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Guest(self).connection,
            sock=_bind(host),
            ssl=context,
            ssl_handshake_timeout=None if context is None else _HELLO_S,
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def invite(self, request: pb.FramesRequest, call: Call) -> pb.FramesResponse:
        """`Decode.Frames`."""
        made = self.invitations.invite()
        return pb.FramesResponse(port=self.port, name=made.name, secret=made.secret)

    async def stop(self) -> None:
        """Ends all connections, once callers have been told what `OpenCalls.cut_off` has them be
        told."""
        if self._server is None:
            return
        self._server.close()
        calls = [task for guest in self._guests for task in guest.tasks]
        if calls:
            await asyncio.wait(calls, timeout=LAST_WORDS_S)
        for guest in (*self._strangers, *self._guests):
            guest.connection.close()
        self._server = None

    def _came(self, guest: "_Guest") -> None:
        self._strangers[guest] = None
        if len(self._strangers) > _MAX_STRANGERS:  # whoever is invited says so at once
            self._leave(next(iter(self._strangers)))
        if self._server is None:
            self._leave(guest)

    def _leave(self, guest: "_Guest") -> None:
        """Hangs up on it."""
        self._went(guest)
        guest.connection.abort()

    def _welcome(self, guest: "_Guest", hello: bytes) -> bytes | None:
        """Returns what it is welcomed with."""
        proof = self.invitations.welcome(hello)
        if proof is not None:
            self._strangers.pop(guest, None)
            self._guests.add(guest)
        return proof

    def _went(self, guest: "_Guest") -> None:
        self._strangers.pop(guest, None)
        self._guests.discard(guest)

    async def _answer(self, call: FrameCall, data: bytes) -> None:
        """The outermost line of a call: whatever happens inside, it ends with a true status."""
        open_calls, failure = self._open_calls, None
        with open_calls:
            try:
                if open_calls.is_cut_off:
                    raise cut_off(call)
                async with asyncio.timeout(call.remaining_s):
                    request = parsed(self._request_type, data)
                    if len(data) > LARGE_BYTES:
                        await asyncio.sleep(0)  # to check one takes a while, too
                    await self._serve(request, call)
            except (asyncio.CancelledError, Exception) as error:
                failure = blamed(error, call, open_calls)
        call.end(failure)


class _Guest:
    """A router that is connected, and its calls."""

    def __init__(self, server: FrameServer) -> None:
        self._server = server
        self._incoming: dict[int, _Request] = {}
        self._calls: dict[int, FrameCall] = {}
        self.is_known = False
        self.connection = FrameConnection(self._take, self._lost, self._made)
        self._timer: asyncio.TimerHandle | None = None  # while it is a stranger

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        return [call.task for call in self._calls.values() if call.task is not None]

    def _made(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_HELLO_S, self.connection.abort)
        self._server._came(self)

    def _take(self, kind: int, stream: int, payload: bytes) -> None:
        """Raises ValueError for what nobody says who knows how to speak."""
        if not self.is_known:
            self._be_known(kind, payload)
            return
        call = self._calls.get(stream)
        match kind:
            case FrameKind.CREDIT:
                (num_bytes,) = unpacked(CREDIT, payload)
                if call is not None:
                    call.credit(num_bytes)
            case FrameKind.START:
                self._begin(stream, payload)
            case FrameKind.MORE:
                self._go_on(stream, payload)
            case FrameKind.CANCEL:
                self._incoming.pop(stream, None)
                if call is not None and call.task is not None:
                    call.task.cancel()
            case _:
                raise ValueError(f"A guest sends no frame {kind}.")

    def _be_known(self, kind: int, payload: bytes) -> None:
        proof = self._server._welcome(self, payload) if kind == FrameKind.HELLO else None
        if proof is None:
            raise ValueError("It was not invited.")
        self.is_known = True
        self._forget_timer()
        self.connection.write(FrameKind.WELCOME, 0, proof)

    def _begin(self, stream: int, payload: bytes) -> None:
        seconds, num_bytes = unpacked(START, payload)
        is_taken = stream in self._incoming or stream in self._calls
        is_full = len(self._incoming) + len(self._calls) >= _MAX_CALLS
        if is_taken or is_full or num_bytes > INTERNAL_MESSAGE_BYTES or not seconds >= 0.0:
            raise ValueError("A call that cannot begin.")
        deadline = None if seconds == inf else time.monotonic() + seconds
        self._incoming[stream] = _Request(deadline, num_bytes)
        self._go_on(stream, payload[START.size :])

    def _go_on(self, stream: int, data: bytes) -> None:
        if (request := self._incoming.get(stream)) is None:
            return  # it was cancelled
        request.data += data
        if len(request.data) > request.num_bytes:
            raise ValueError("A request longer than it said.")
        if len(request.data) == request.num_bytes:
            del self._incoming[stream]
            call = FrameCall(self.connection, stream, request.deadline)
            self._calls[stream] = call
            answer = self._server._answer(call, bytes(request.data))
            call.task = asyncio.create_task(answer, name=f"frames {stream}")
            call.task.add_done_callback(lambda _: self._calls.pop(stream, None))

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _lost(self) -> None:
        self._forget_timer()
        self._server._went(self)
        self._incoming.clear()
        for call in self._calls.values():
            call.credit(0)
            if call.task is not None:
                call.task.cancel()


def _bind(host: str) -> socket.socket:
    """As gRPC does: all of a machine's addresses are those of both families."""
    found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, *_, where = found[0]
    is_dual = family is socket.AF_INET6 and Endpoint(host, 0).is_any
    return socket.create_server(where[:2], family=family, dualstack_ipv6=is_dual)
