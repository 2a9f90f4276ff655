"""The server side of gRPC as every process here speaks it.

Owns parsing, deadlines, the check of passes and the translation of whatever is raised into one
status with details. Knows no service: a service is a dict of coroutines that get a request
and a `Call`. Handlers write; nothing here is a generator.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn, Self

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from grpc_reflection.v1alpha import reflection

from cluster.addresses import Endpoint, host_of_peer
from cluster.authority import PLAIN, Credentials
from cluster.blame import DEADLINE_MARGIN_S, blamed, cut_off
from cluster.channel import (
    EOF,
    INTERNAL_MESSAGE_BYTES,
    Method,
    Options,
    common_options,
    methods,
)
from cluster.errors import (
    InvalidRequest,
    PeerError,
    PenstockError,
    StartupError,
    UnsupportedFeature,
)
from cluster.health import HEALTH, HealthState, health_rpcs
from cluster.intake import Intake
from cluster.open_calls import OpenCalls
from cluster.proof import Doorkeeper
from cluster.status import to_status
from cluster.tls import server_credentials

logger = logging.getLogger(__name__)

PUBLIC_MESSAGE_BYTES = 8 << 20
LARGE_BYTES = 64 << 10  # of a request: more are a turn of the loop to parse, and one to check
_MAX_PENDING_CALLS = 1 << 15  # not taken yet; each holds a few kilobytes
_MAX_PENDING_S = 3600  # deadlines are ours to keep
# So long a server that stops has for telling its callers. Who does not read never hears it.
LAST_WORDS_S = 2.0
_FOR_EVER_S = 1e8  # until `stop` sets a bound

# What grpc.aio raises when the other side of a call is no longer there.
_CALLER_GONE = (grpc.aio.InternalError, grpc.aio.UsageError, asyncio.InvalidStateError)

# (request, call) for a single request; (call,) where the client streams.
Serve = Callable[..., Awaitable[Any]]
# Says who calls, by the `authorization` headers that came; raises Unauthenticated.
Identify = Callable[[Sequence[str]], Any]
# What must hold of a request's bytes before they are parsed; raises what the call ends with.
Check = Callable[[type[Message], bytes], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Sets the deadline of a call that has none, and the longest that one may ask for."""

    default_s: float | None = 300.0
    maximum_s: float | None = 3600.0


UNBOUNDED = Deadlines(default_s=None, maximum_s=None)  # for streams that live with their peer


def server_options(
    max_receive_bytes: int = PUBLIC_MESSAGE_BYTES, max_send_bytes: int = INTERNAL_MESSAGE_BYTES
) -> Options:
    """Arguments under which a client that pings every 30 s keeps a call silent for 10 minutes."""
    return [
        *common_options(max_receive_bytes, max_send_bytes),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # 0 is without limit: pings never end a connection (the default is two strikes, and
        # five minutes between pings without data).
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        # Who is refused is told so, by us: gRPC drops calls by lot once a thousand wait to be
        # taken, and each that has waited for 30 s.
        ("grpc.server.max_pending_requests", _MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING_CALLS),
        ("grpc.server_max_unrequested_time_in_server", _MAX_PENDING_S),
        ("grpc.http2.bdp_probe", 0),
        # TLS, and the first words of HTTP/2: who takes longer over them is hung up on.
        ("grpc.server_handshake_timeout_ms", 10_000),
        # Two processes on one port would share its connections without a word.
        ("grpc.so_reuseport", 0),
    ]


def remaining_s(
    context: grpc.aio.ServicerContext[Any, Any],
    default_s: float | None = 300.0,
    maximum_s: float | None = 3600.0,
) -> float | None:
    """Seconds until the call must have ended; None is without end."""
    asked_s = context.time_remaining()
    if asked_s is None:
        return default_s
    asked_s -= min(DEADLINE_MARGIN_S, 0.1 * asked_s)
    return asked_s if maximum_s is None else min(asked_s, maximum_s)


class Call:
    """One call as its handler sees it: the deadline, and the way to read and answer.

    `phase` and `tokens_emitted` are the handler's to set; they travel with the status of a call
    that is cut off, by its deadline or by the end of this server.
    """

    __slots__ = ("_context", "_method", "_opening", "deadline", "key", "phase", "tokens_emitted")

    def __init__(
        self, context: grpc.aio.ServicerContext[Any, Any], method: Method, deadline: float | None
    ) -> None:
        self._context = context
        self._method = method
        self._opening: asyncio.Task[None] | None = None  # sends what comes first
        self.deadline = deadline  # time.monotonic(); None is without end
        self.key: Any = None  # who calls, as the service's `identify` says
        self.phase = "request"
        self.tokens_emitted = 0

    @property
    def remaining_s(self) -> float | None:
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    @property
    def peer(self) -> str:
        return self._context.peer()

    @property
    def peer_host(self) -> str:
        """The address that the caller's connection comes from, without its port."""
        return host_of_peer(self.peer)

    def metadata(self, key: str) -> str | None:
        """The first value of a metadata key, in lower case, that the client sent."""
        for name, value in self._context.invocation_metadata() or ():
            if name == key:
                return value if isinstance(value, str) else value.decode("latin-1")
        return None

    def all_metadata(self, key: str) -> list[str]:
        """Gives all values of a key, of which a client may send several."""
        sent = self._context.invocation_metadata() or ()
        return [str(value) for name, value in sent if name == key]

    async def send_metadata(self, *metadata: tuple[str, str]) -> None:
        """Sends initial metadata. With the first message, no earlier: a client's own retries
        end when it arrives."""
        await self._hand_over(self._context.send_initial_metadata(metadata))

    async def send(self, message: Message | bytes) -> None:
        """Hands a message to gRPC; waits while the peer does not read."""
        await self._hand_over(self._context.write(encoded(message)))

    async def _hand_over(self, words: Coroutine[Any, Any, None]) -> None:
        try:
            if self._opening is None:
                # Begun, it is ended: of a cancelled one gRPC forgets that it opened the call.
                self._opening = asyncio.create_task(words)
                words = asyncio.shield(self._opening)  # type: ignore[assignment]
            await words
        except _CALLER_GONE as error:
            raise PeerError("The caller has ended the call.") from error

    async def opened(self) -> None:
        """Returns when nothing that opens the call is on its way any more, or is not read."""
        if self._opening is not None and not self._opening.done():
            await asyncio.wait({self._opening}, timeout=LAST_WORDS_S)

    async def receive(self) -> Any:
        """The client's next message; None when it has sent its last."""
        data = await self.receive_bytes()
        return None if data is None else parsed(self._method.request_type, data)

    async def receive_bytes(self) -> bytes | None:
        """Receives a message as its bytes, not parsed."""
        try:
            data: Any = await self._context.read()
        except _CALLER_GONE as error:
            raise PeerError("The caller has ended the call.") from error
        return None if data is EOF else data


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Holds what a server offers under one name, and the calls of it that are open."""

    name: str
    rpcs: "grpc.GenericRpcHandler[Any, Any]"
    open_calls: OpenCalls


def service_handlers(
    service: str,
    handlers: Mapping[str, Serve],
    *,
    door: Doorkeeper | None = None,
    identify: Identify | None = None,
    deadlines: Deadlines = Deadlines(),
    check: Check = lambda message_type, data: None,
) -> Service:
    """A service made of coroutines: `(request, call)`, or `(call)` where the client streams.

    A unary one returns the response (a message or its bytes), a streaming one writes with
    `call.send`. `check` judges single requests as they come. An RPC without a coroutine answers
    UNIMPLEMENTED. With a `door` only those who have proven themselves there get in, with `identify`
    only whom it knows.
    """
    known = methods(service)
    if unknown := handlers.keys() - known.keys():
        raise ValueError(f"{service} has no {sorted(unknown)}; it has {sorted(known)}.")
    open_calls, intake = OpenCalls(), Intake()
    by_name = {
        name: _method_handler(
            method, handlers.get(name), door, identify, deadlines, intake, check, open_calls
        )
        for name, method in known.items()
    }
    rpcs = grpc.method_handlers_generic_handler(service, by_name)
    return Service(name=service, rpcs=rpcs, open_calls=open_calls)


def _method_handler(
    method: Method,
    serve: Serve | None,
    door: Doorkeeper | None,
    identify: Identify | None,
    deadlines: Deadlines,
    intake: Intake,
    check: Check,
    open_calls: OpenCalls,
) -> "grpc.RpcMethodHandler[Any, Any]":
    serve = serve or _unimplemented(method)
    serve_call = serve if method.is_client_streaming else _parsing(method, serve, intake, check)
    answer = _answering(method, serve_call, door, identify, deadlines, open_calls)
    # To gRPC every client streams, for then we say when a request's body comes in.
    if method.is_server_streaming:
        return grpc.stream_stream_rpc_method_handler(answer)
    return grpc.stream_unary_rpc_method_handler(answer)


def _unimplemented(method: Method) -> Serve:
    async def refuse(*_: Any) -> NoReturn:
        raise UnsupportedFeature(method.path.removeprefix("/"))

    return refuse


def _parsing(method: Method, serve: Serve, intake: Intake, check: Check) -> Serve:
    async def serve_call(call: Call) -> Any:
        data = await intake.take(call.peer, call.receive_bytes)
        if data is None:
            raise InvalidRequest("request", "The call ended before its request was sent.")
        check(method.request_type, data)
        request = parsed(method.request_type, data)
        if len(data) > LARGE_BYTES:
            await asyncio.sleep(0)  # to check one takes a while, too: others come in between
        return await serve(request, call)

    return serve_call


def _answering(
    method: Method,
    serve: Serve,
    door: Doorkeeper | None,
    identify: Identify | None,
    deadlines: Deadlines,
    open_calls: OpenCalls,
) -> Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Awaitable[Any]]:
    """The outermost line of a call: whatever happens inside, it ends with a true status."""

    async def answer(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        seconds = remaining_s(context, deadlines.default_s, deadlines.maximum_s)
        call = Call(context, method, None if seconds is None else time.monotonic() + seconds)
        with open_calls:
            try:
                if door is not None:
                    door.check(call.peer, method.path, call.metadata("authorization"))
                if identify is not None:
                    call.key = identify(call.all_metadata("authorization"))
                if open_calls.is_cut_off:
                    raise cut_off(call)
                async with asyncio.timeout(seconds):
                    response = await serve(call)
                return None if method.is_server_streaming else encoded(response)
            except (asyncio.CancelledError, Exception) as error:
                failure = blamed(error, call, open_calls)
            await call.opened()
            await _abort(context, failure)

    return answer


async def _abort(context: grpc.aio.ServicerContext[Any, Any], failure: PenstockError) -> NoReturn:
    """Ends a call with a status; quietly where the caller has ended it already."""
    if context.done():
        raise asyncio.CancelledError
    code, message, trailing = to_status(failure)
    try:
        await context.abort(code, message, trailing)
    except _CALLER_GONE as error:
        logger.debug("a status reached nobody: %s", code.name)
        raise asyncio.CancelledError from error


def encoded(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def parsed(message_type: type[Message], data: bytes) -> Message:
    """*Raises* InvalidRequest."""
    try:
        return message_type.FromString(data)
    except DecodeError as error:
        name = message_type.DESCRIPTOR.full_name
        raise InvalidRequest(
            "request",
            f"These {len(data)} bytes are no {name}: they are malformed, or a text in them is "
            "not valid UTF-8.",
        ) from error


class Server:
    """A gRPC server with health and reflection. `async with` starts it, and ends every call
    at exit; `stop` gives the calls in flight some time. Each caller is told the truth: how many
    tokens were sent, or that the call may be made again."""

    def __init__(
        self,
        services: Sequence[Service],
        *,
        address: str = "127.0.0.1:0",
        health: HealthState | None = None,
        max_receive_bytes: int = PUBLIC_MESSAGE_BYTES,
        options: Options | None = None,
        credentials: Credentials = PLAIN,
        shown: grpc.ServerCredentials | None = None,
    ) -> None:
        """Beyond loopback it listens under TLS, where the credentials can. `shown`: what it shows
        instead, wherever it listens."""
        self._services = list(services)
        if health is not None:
            self._services.append(
                service_handlers(HEALTH, health_rpcs(health), deadlines=UNBOUNDED)
            )
        self._asked_address = address
        self._options = server_options(max_receive_bytes) if options is None else options
        self._credentials = credentials
        self._shown = shown
        self._server: grpc.aio.Server | None = None
        self._closing: asyncio.Task[None] | None = None
        self.is_tls = False
        self.address = address  # with the port really bound, once started

    @property
    def port(self) -> int:
        return Endpoint.parse(self.address).port

    async def start(self) -> None:
        server = grpc.aio.server(options=self._options)
        for service in self._services:
            service.open_calls.is_cut_off = False  # by an earlier server of theirs
        server.add_generic_rpc_handlers(tuple(service.rpcs for service in self._services))
        names = [service.name for service in self._services]
        reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
        shown = self._shown
        if shown is None and (identity := self._credentials.at(self._asked_address)) is not None:
            shown = server_credentials(identity)
        self.is_tls = shown is not None
        self.address = _bind(server, self._asked_address, shown)
        await server.start()
        self._server, self._closing = server, None

    def close_door(self) -> None:
        """Takes no connection and no call from now on, and tells who is connected to go elsewhere
        (GOAWAY). What is in progress goes on until `stop`."""
        if self._server is not None and self._closing is None:
            self._closing = asyncio.create_task(self._server.stop(_FOR_EVER_S))

    async def stop(self, grace_s: float = 0.0) -> None:
        """Refuses new calls, and cuts off those still running after `grace_s`."""
        if self._server is None:
            return
        async with asyncio.TaskGroup() as tasks:
            stopping = tasks.create_task(self._server.stop(grace_s + LAST_WORDS_S))
            await asyncio.wait({stopping}, timeout=grace_s)
            for service in self._services:
                service.open_calls.cut_off()
        if self._closing is not None:
            await self._closing

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


def _bind(server: grpc.aio.Server, address: str, shown: grpc.ServerCredentials | None) -> str:
    host = address.rpartition(":")[0]
    try:
        if shown is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, shown)
    except RuntimeError as error:
        raise StartupError(
            f"Could not listen on '{address}': is the port taken, or the host not this one's? "
            "Give another address, or port 0 for any."
        ) from error
    return f"{host}:{port}"
