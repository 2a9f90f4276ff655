"""The client side of gRPC between our processes: one channel to one address, and the
arguments that both sides share.

With the cluster's token, nothing is said before the other end has proven that it has it, too
(`cluster/visitor.py`). Every failure is one of ours. Knows no service.
"""

import functools
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message

from cluster.authority import PLAIN, Credentials, TlsIdentity
from cluster.errors import PenstockError, WorkerLost
from cluster.proof import ANYONE
from cluster.status import from_status
from cluster.tls import from_call, secure_channel
from cluster.visitor import Visitor

# Imported so that the descriptor pool knows the services by name: these, and health.
from penstock.v1 import inference_pb2, worker_pb2  # noqa: F401

INTERNAL_MESSAGE_BYTES = 64 << 20
EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # its stubs lack it

Options = list[tuple[str, int | str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One RPC as its descriptor states it."""

    path: str
    request_type: type[Message]
    response_type: type[Message]
    is_client_streaming: bool
    is_server_streaming: bool


@functools.cache
def methods(service: str) -> Mapping[str, Method]:
    """The RPCs of a service, by name, from its descriptor."""
    descriptor = descriptor_pool.Default().FindServiceByName(service)
    return {
        name: Method(
            path=f"/{service}/{name}",
            request_type=message_factory.GetMessageClass(method.input_type),
            response_type=message_factory.GetMessageClass(method.output_type),
            is_client_streaming=method.client_streaming,
            is_server_streaming=method.server_streaming,
        )
        for name, method in descriptor.methods_by_name.items()
    }


def common_options(max_receive_bytes: int, max_send_bytes: int) -> Options:
    return [
        ("grpc.max_receive_message_length", max_receive_bytes),
        ("grpc.max_send_message_length", max_send_bytes),
        ("grpc.keepalive_permit_without_calls", 1),
        # 0 is without limit. By default a side stops pinging after two pings without data,
        # and a dead peer of a silent call would be noticed by nobody.
        ("grpc.http2.max_pings_without_data", 0),
    ]


def channel_options(max_receive_bytes: int = INTERNAL_MESSAGE_BYTES) -> Options:
    return [
        *common_options(max_receive_bytes, INTERNAL_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # A stream that its reader leaves alone fills 64 KiB here. With probes for bandwidth it is
        # 4 MiB, times all the streams that clients leave unread.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        # A process that comes back is found again in less than a third of a second.
        ("grpc.max_reconnect_backoff_ms", 250),
        # A new channel to a restarted worker must not inherit the old one's backoff.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        # What has been sent is never sent again by gRPC itself, on another connection.
        ("grpc.enable_retries", 0),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A call that is to be made."""

    method: Method
    is_raw: bool = False
    deadline: float | None  # time.monotonic()
    wait_for_ready: bool = False
    request: tuple[Message | bytes, ...] = ()  # none where the client streams

    @property
    def timeout_s(self) -> float | None:
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


class Channel:
    """A connection to one peer, made when first used and remade by gRPC when lost."""

    def __init__(
        self,
        address: str,
        token: str | None,
        audience: str,
        options: Options,
        identity: TlsIdentity | None = None,
    ) -> None:
        self.address = address
        self._is_tls = identity is not None
        self._channel = secure_channel(address, identity, options)
        self._visitor: Visitor | None = None
        if token is not None:
            self._visitor = Visitor(self._channel, address, token, audience, is_tls=self._is_tls)
        self._callables: dict[tuple[str, bool], Any] = {}

    async def unary(
        self,
        service: str,
        method: str,
        request: Message | bytes,
        *,
        timeout_s: float | None,
        wait_for_ready: bool = False,
    ) -> Any:
        """One answer to one request. With `wait_for_ready` a peer that is away is waited for."""
        asked = _Asked(
            method=methods(service)[method],
            deadline=_deadline(timeout_s),
            wait_for_ready=wait_for_ready,
            request=(request,),
        )
        call = await self._start(asked)
        try:
            return await call
        except (grpc.aio.AioRpcError, grpc.aio.UsageError) as error:
            raise self._translated(error) from error

    def stream(
        self,
        service: str,
        method: str,
        request: Message | bytes,
        *,
        timeout_s: float | None,
        is_raw: bool = False,
        wait_for_ready: bool = False,
    ) -> "Exchange":
        """Many answers to one request; as bytes if `is_raw`. Starts with `async with`."""
        asked = _Asked(
            method=methods(service)[method],
            is_raw=is_raw,
            deadline=_deadline(timeout_s),
            wait_for_ready=wait_for_ready,
            request=(request,),
        )
        return Exchange(self, asked)

    def exchange(
        self, service: str, method: str, *, timeout_s: float | None, is_raw: bool = False
    ) -> "Exchange":
        """Both sides stream. Starts with `async with`."""
        known = methods(service)[method]
        return Exchange(self, _Asked(method=known, is_raw=is_raw, deadline=_deadline(timeout_s)))

    async def close(self) -> None:
        """Ends every call of the channel at once."""
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _start(self, asked: _Asked) -> Any:
        """The call, let in by whoever has proven to be there."""
        metadata: tuple[tuple[str, str], ...] = ()
        if self._visitor is not None:
            let_in = await self._visitor.pass_for(
                asked.method.path, asked.timeout_s, waits=asked.wait_for_ready
            )
            metadata = (("authorization", let_in),)
        try:
            return self._callable(asked)(
                *asked.request,
                timeout=asked.timeout_s,
                metadata=metadata,
                wait_for_ready=asked.wait_for_ready,
            )
        except grpc.aio.UsageError as error:
            raise self._translated(error) from error

    @property
    def _is_known(self) -> bool:
        return self._visitor is None or self._visitor.is_known()

    def _request_bytes(self, message: Message | bytes) -> bytes:
        """Nothing, if the proven connection is lost: then gRPC makes another, to whoever is there,
        where the call will be refused."""
        return _serialized(message) if self._is_known else b""

    def _translated(self, error: Exception) -> PenstockError:
        if not isinstance(error, grpc.aio.AioRpcError):
            return WorkerLost(f"The channel to {self.address} is closed.")
        failure = from_call(error, is_tls=self._is_tls)
        return failure if self._visitor is None else self._visitor.failed(failure)

    def _callable(self, asked: _Asked) -> Any:
        key = (asked.method.path, asked.is_raw)
        if key not in self._callables:
            self._callables[key] = self._open(asked.method, asked.is_raw)
        return self._callables[key]

    def _open(self, method: Method, is_raw: bool) -> Any:
        match method.is_client_streaming, method.is_server_streaming:
            case False, False:
                multi_callable: Any = self._channel.unary_unary
            case False, True:
                multi_callable = self._channel.unary_stream
            case True, True:
                multi_callable = self._channel.stream_stream
            case _:
                multi_callable = self._channel.stream_unary
        serialize = _serialized if method.is_client_streaming else self._request_bytes
        parse = None if is_raw else method.response_type.FromString
        return multi_callable(
            method.path, request_serializer=serialize, response_deserializer=parse
        )


class Exchange:
    """One streaming call. Leaving its scope cancels it, without waiting for the peer.

    NOTE: cancelling a task that waits in `receive` cancels the whole call, so do not put a timeout
    of its own around it.
    """

    __slots__ = ("_asked", "_call", "_channel", "_has_spoken", "_is_cancelled", "num_received")

    def __init__(self, channel: Channel, asked: _Asked) -> None:
        self._channel = channel
        self._asked = asked
        self._call: Any = None  # until it starts
        self._has_spoken = False
        self._is_cancelled = False
        self.num_received = 0  # messages, by `pass_to`

    async def receive(self) -> Any:
        """The next message; None when the peer has ended the call well."""
        try:
            message = await self._call.read()
        except (grpc.aio.AioRpcError, grpc.aio.UsageError) as error:
            raise self._channel._translated(error) from error
        return None if message is EOF else message

    async def pass_to(self, take: Callable[[Any], Awaitable[None]]) -> None:
        """Awaits `take` with every message, until the peer has ended the call well. The relay's
        hot loop: one coroutine less a message than `receive`."""
        read = self._call.read
        try:
            while (message := await read()) is not EOF:
                self.num_received += 1
                await take(message)
        except (grpc.aio.AioRpcError, grpc.aio.UsageError) as error:
            raise self._channel._translated(error) from error

    async def send(self, message: Message | bytes) -> None:
        if not self._has_spoken and not self._channel._is_known:
            raise WorkerLost(f"The connection to {self._channel.address} was lost.")
        self._has_spoken = True
        try:
            await self._call.wait_for_connection()
            # Not `write`: where that fails, INTERNAL takes the place of what the peer said.
            await self._call._cython_call.send_serialized_message(_serialized(message))
        except grpc.aio.AioRpcError as error:
            raise self._channel._translated(error) from error
        except grpc.aio.InternalError as error:
            raise await self._ending() from error

    async def _ending(self) -> PenstockError:
        """Finds out why a call has ended to which more was to be said."""
        if (code := await self._call.code()) is grpc.StatusCode.OK:
            return WorkerLost(f"{self._channel.address} ended the call before it was told all.")
        trailing = tuple(await self._call.trailing_metadata() or ())
        failure = from_status(code, await self._call.details(), trailing)
        visitor = self._channel._visitor
        return failure if visitor is None else visitor.failed(failure)

    def cancel(self) -> None:
        self._is_cancelled = True
        if self._call is not None:
            self._call.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if (message := await self.receive()) is None:
            raise StopAsyncIteration
        return message

    async def __aenter__(self) -> Self:
        self._call = await self._channel._start(self._asked)
        if self._is_cancelled:
            self._call.cancel()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()


def open_channel(
    address: str,
    token: str | None = None,
    audience: str = ANYONE,
    *,
    credentials: Credentials = PLAIN,
    max_receive_bytes: int = INTERNAL_MESSAGE_BYTES,
) -> Channel:
    """A channel to `address`. With the cluster's token both ends prove that they have it before
    a call is made, and the other that it is the `audience`. Beyond loopback under TLS, where the
    credentials can. Needs a running loop."""
    options = channel_options(max_receive_bytes)
    return Channel(address, token, audience, options, credentials.at(address))


def _serialized(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def _deadline(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s
