"""The worker's end of connections of frames: one streaming call, served over them as over gRPC."""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any

from google.protobuf.message import DecodeError

from cluster.addresses import Endpoint
from cluster.authority import TlsIdentity
from cluster.blame import blamed, cut_off
from cluster.channel import INTERNAL_MESSAGE_BYTES, methods
from cluster.errors import (
    AnswerGone,
    AnswerMoved,
    CallerError,
)
from cluster.frames.connection import FrameConnection
from cluster.frames.invitation import Invitations
from cluster.frames.wire import (
    ALIVE_S,
    CREDIT,
    START,
    FrameKind,
    unpacked,
)
from cluster.lateness import AttentiveClock
from cluster.open_calls import OpenCalls
from cluster.rpc import LARGE_BYTES, LAST_WORDS_S, Call, parsed
from cluster.status import status_bytes
from cluster.tls import server_context
from penstock.v1 import inference_pb2
from penstock.v1 import worker_pb2 as pb
from worker.frame_call import FrameCall
from worker.outliving import AnswerKey, Grace, Outliving

_HELLO_S = 5.0  # for who has connected to show its invitation; as long for TLS, where it is due
_MAX_STRANGERS = 64  # who have not yet
_MAX_CALLS = 1 << 16  # of a connection
SILENT_S = 2.0  # so long a router may say nothing, which says so often that it lives

Serve = Callable[[Any, FrameCall], Awaitable[None]]


@dataclass(slots=True, eq=False)
class _Request:
    """One that is on its way in."""

    deadline: float | None
    num_bytes: int
    data: bytearray = field(default_factory=bytearray)


class FrameServer:
    """Listens for routers that were invited."""

    def __init__(
        self, service: str, method: str, serve: Serve, attention: AttentiveClock, grace: Grace
    ) -> None:
        """One method, that streams its answers."""
        self._request_type = methods(service)[method].request_type
        self._serve = serve
        self._attention = attention
        self.outliving: Outliving[FrameCall] = Outliving(attention, grace)
        self.invitations = Invitations(time.monotonic)
        self._strangers: dict[_Guest, None] = {}  # in the order in which they came
        self._guests: set[_Guest] = set()  # who have shown their invitation
        self._tasks: set[asyncio.Task[None]] = set()  # of all calls
        self._looker: asyncio.TimerHandle | None = None
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
        self._look_later()

    async def invite(self, request: pb.FramesRequest, call: Call) -> pb.FramesResponse:
        """`Decode.Frames`."""
        made = self.invitations.invite()
        return pb.FramesResponse(
            port=self.port,
            name=made.name,
            secret=made.secret,
            outlives=self.outliving.is_possible,
        )

    async def stop(self) -> None:
        """Ends all connections, once callers have been told what `OpenCalls.cut_off` has them be
        told."""
        if self._server is None:
            return
        self._server.close()
        if self._looker is not None:
            self._looker.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LAST_WORDS_S)
        self.outliving.close()
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

    def _look_later(self) -> None:
        self._looker = asyncio.get_running_loop().call_later(ALIVE_S, self._look)

    def _look(self) -> None:
        now = self._attention.now()
        for guest in self._guests:
            guest.look(now)
        self._look_later()

    def _begin(self, call: FrameCall, data: bytes) -> None:
        call.task = asyncio.create_task(self._answer(call, data), name="frames")
        self._tasks.add(call.task)
        call.task.add_done_callback(lambda task: self._over(call, task))

    def _over(self, call: FrameCall, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        call.leave()
        if task.cancelled():
            self.outliving.forget(call)  # whoever asked for it wants no more
        else:
            self.outliving.leave(call)  # what it said last may not have arrived

    def _attach(self, guest: "_Guest", stream: int, payload: bytes) -> None:
        """Raises ValueError for what is no request."""
        try:
            asked = pb.Reattach.FromString(payload)
        except DecodeError as error:
            raise ValueError(str(error)) from error
        try:
            call, messages = self._outlived(asked.tenant, asked.answer)
        except CallerError as error:
            guest.connection.write(FrameKind.END, stream, status_bytes(error))
            return
        call.attach(guest, stream, messages)
        call.epoch = max(call.epoch + 1, asked.answer.epoch)
        self.outliving.attached(call)

    def _outlived(
        self, tenant: str, asked: inference_pb2.AttachRequest
    ) -> tuple[FrameCall, list[bytes]]:
        """Finds an answer, and what follows on what its client has. Raises AnswerGone, AnswerMoved
        and InvalidRequest."""
        key = AnswerKey(tenant, asked.request_id, asked.resume_secret)
        call = self.outliving.find(key)
        if call is None or call.kept is None:
            raise AnswerGone(
                f"Nobody keeps the answer to '{asked.request_id}' any more, or it is another's:"
                " ask anew."
            )
        if asked.epoch and asked.epoch <= call.epoch:
            raise AnswerMoved("The client goes on with this answer by a later call.")
        return call, call.kept.after(asked.next_index)

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
        self.server = server
        self._incoming: dict[int, _Request] = {}
        self.calls: dict[int, FrameCall] = {}
        self.is_known = False
        self.is_outlived = False  # it knows that its answers do
        self.is_silent = False  # it is connected, and nothing was heard of it for long
        self._has_spoken = False  # since it was looked at
        self._heard_at = 0.0
        self.connection = FrameConnection(self._take, self._lost, self._made, self._wake)
        self._timer: asyncio.TimerHandle | None = None  # while it is a stranger

    @property
    def hears(self) -> bool:
        return not self.is_silent and self.connection.is_writable

    def keep(self, key: AnswerKey, call: FrameCall) -> None:
        self.server.outliving.keep(key, call)

    def look(self, now: float) -> None:
        """Judges whether it is silent, `now` in time that we were there."""
        if self._has_spoken or not self.calls:
            self._has_spoken, self._heard_at = False, now
        elif self.is_outlived and not self.is_silent and now - self._heard_at > SILENT_S:
            self.is_silent = True
            for call in tuple(self.calls.values()):
                self.server.outliving.leave(call)

    def _sound(self) -> None:
        """It is silent no more."""
        self.is_silent = False
        for call in self.calls.values():
            self.server.outliving.take_back(call)
        self._wake()

    def _wake(self) -> None:
        for call in self.calls.values():
            call.wake()

    def _made(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_HELLO_S, self.connection.abort)
        self.server._came(self)

    def _take(self, kind: int, stream: int, payload: bytes) -> None:
        """Raises ValueError for what nobody says who knows how to speak."""
        if not self.is_known:
            self._be_known(kind, payload)
            return
        self._has_spoken = True
        if self.is_silent:
            self._sound()
        self._hear(kind, stream, payload)

    def _hear(self, kind: int, stream: int, payload: bytes) -> None:
        call = self.calls.get(stream)
        match kind:
            case FrameKind.CREDIT:
                (num_bytes,) = unpacked(CREDIT, payload)
                if call is not None:
                    call.credit(num_bytes)
            case FrameKind.START:
                self._begin(stream, payload)
            case FrameKind.MORE:
                self._go_on(stream, payload)
            case FrameKind.ALIVE:
                self.is_outlived = True
            case FrameKind.ATTACH:
                self._check_room(stream)
                self.server._attach(self, stream, payload)
            case FrameKind.CANCEL:
                self._incoming.pop(stream, None)
                if call is not None and call.task is not None:
                    self.server.outliving.forget(call)  # at once: nobody may attach to it any more
                    call.task.cancel()
            case _:
                raise ValueError(f"A guest sends no frame {kind}.")

    def _be_known(self, kind: int, payload: bytes) -> None:
        proof = self.server._welcome(self, payload) if kind == FrameKind.HELLO else None
        if proof is None:
            raise ValueError("It was not invited.")
        self.is_known = True
        self._forget_timer()
        self.connection.write(FrameKind.WELCOME, 0, proof)

    def _begin(self, stream: int, payload: bytes) -> None:
        seconds, num_bytes = unpacked(START, payload)
        self._check_room(stream)
        if num_bytes > INTERNAL_MESSAGE_BYTES or not seconds >= 0.0:
            raise ValueError("A call that cannot begin.")
        deadline = None if seconds == inf else time.monotonic() + seconds
        self._incoming[stream] = _Request(deadline, num_bytes)
        self._go_on(stream, payload[START.size :])

    def _check_room(self, stream: int) -> None:
        is_taken = stream in self._incoming or stream in self.calls
        if is_taken or len(self._incoming) + len(self.calls) >= _MAX_CALLS:
            raise ValueError("A call that cannot begin.")

    def _go_on(self, stream: int, data: bytes) -> None:
        if (request := self._incoming.get(stream)) is None:
            return  # it was cancelled
        request.data += data
        if len(request.data) > request.num_bytes:
            raise ValueError("A request longer than it said.")
        if len(request.data) == request.num_bytes:
            del self._incoming[stream]
            call = self.calls[stream] = FrameCall(self, stream, request.deadline)
            self.server._begin(call, bytes(request.data))

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _lost(self) -> None:
        self._forget_timer()
        self.server._went(self)
        self._incoming.clear()
        for call in tuple(self.calls.values()):
            if call.kept is not None and call.is_known:
                call.detach()
                self.server.outliving.leave(call)
            elif call.task is not None:
                call.task.cancel()
            call.wake()
        self.calls.clear()


def _bind(host: str) -> socket.socket:
    """As gRPC does: all of a machine's addresses are those of both families."""
    found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, *_, where = found[0]
    is_dual = family is socket.AF_INET6 and Endpoint(host, 0).is_any
    return socket.create_server(where[:2], family=family, dualstack_ipv6=is_dual)
