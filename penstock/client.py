"""The blocking client. All decisions are in `exchange.py` and `calls.py`; here is only I/O."""

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from penstock import calls
from penstock.answer import Accepted, Answer, Chunk
from penstock.api_key import Metadata, call_metadata
from penstock.errors import RequestCancelledError, from_rpc_error
from penstock.exchange import StreamState, channel_options
from penstock.request import GenerateOptions, Message
from penstock.retry import Attempts, Reach, RetryBudget, RetryPolicy
from penstock.tls import File, dialled
from penstock.v1 import inference_pb2 as pb
from penstock.v1.inference_pb2_grpc import InferenceStub

ReplyT = TypeVar("ReplyT")


class Stream:
    """One answer as it comes: an iterator of chunks. Leaving its `with` block, `close()` or
    Ctrl-C cancels the request in the whole cluster."""

    def __init__(self, stub: Any, exchange: StreamState, metadata: Metadata = ()) -> None:
        self._stub = stub
        self._metadata = metadata
        self._exchange = exchange
        self._pending: list[Chunk] = []
        self._closing = threading.Event()
        self._call = self._send()

    @property
    def accepted(self) -> Accepted | None:
        """Request id, workers, seed, cached tokens; None until the first chunk is here."""
        return self._exchange.accepted

    @property
    def num_messages(self) -> int:
        """Messages so far; one may bring several chunks."""
        return self._exchange.fold.num_messages

    def result(self) -> Answer:
        """Reads to the end and returns the whole answer."""
        for _ in self:
            pass
        return self._exchange.fold.answer()

    def close(self) -> None:
        self._exchange.closed()
        self._closing.set()
        self._call.cancel()

    def _send(self) -> Any:
        timeout = self._exchange.next_timeout()
        method = getattr(self._stub, self._exchange.method)
        call = _invoke(method, self._exchange.request, timeout, self._metadata)
        if self._closing.is_set():  # by another thread, while there was no call to cancel
            call.cancel()
        return call

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        while not self._pending:
            if self._exchange.is_over:
                raise StopIteration
            self._receive()
        return self._pending.pop(0)

    def _receive(self) -> None:
        try:
            self._pending += self._exchange.received(next(self._call))
        except StopIteration:
            self._exchange.ended()
        except grpc.RpcError as error:
            self._closing.wait(self._exchange.failed(error))
            self._call = self._send()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _invoke(method: Any, request: Any, timeout: float | None, metadata: Metadata) -> Any:
    try:
        return method(request, timeout=timeout, metadata=metadata)
    except ValueError as error:  # so gRPC speaks of a channel that was closed
        raise RequestCancelledError("The client is closed.") from error


class Client:
    """A connection to a Penstock cluster at HOST:PORT, by default port 50051; use it from any
    thread.

    A server that was reached before and is away, because it is started again for instance, is
    waited for: by a call with a deadline until then, by others for `reconnect_timeout` seconds.
    One that was never there is given `connect_timeout` seconds. 0 is not to wait.

    `api_key` says who calls, to a cluster that asks; PENSTOCK_API_KEY does where it is None.

    TLS is spoken with `grpcs://` before the address, or if one of these is given, PEM files:
    `ca_file` has who signed the server's certificate, by default the system's roots; `cert_file`
    and `key_file` are what this client shows, to a cluster that asks for it. `server_name` is the
    name that the certificate has, where that is not the host that is dialled.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:50051",
        *,
        api_key: str | None = None,
        timeout: float | None = None,
        retries: RetryPolicy | None = None,
        connect_timeout: float = 5.0,
        reconnect_timeout: float = 30.0,
        ca_file: File | None = None,
        cert_file: File | None = None,
        key_file: File | None = None,
        server_name: str | None = None,
    ) -> None:
        there = dialled(
            address,
            ca_file=ca_file,
            cert_file=cert_file,
            key_file=key_file,
            server_name=server_name,
        )
        address = self.address = there.address
        self._metadata = call_metadata(api_key)
        self._timeout = timeout
        self._budget = RetryBudget(retries or RetryPolicy())
        self._reach = Reach(
            address=address, connect_timeout=connect_timeout, reconnect_timeout=reconnect_timeout
        )
        options = [*channel_options(there.target, connect_timeout), *there.options]
        self._channel = (
            grpc.insecure_channel(there.target, options)
            if there.credentials is None
            else grpc.secure_channel(there.target, there.credentials, options)
        )
        self._stub: Any = InferenceStub(self._channel)

    def generate(self, prompt: str | None = None, **options: Unpack[GenerateOptions]) -> Stream:
        """Streams an answer to a prompt, `messages` or `token_ids`."""
        if self._timeout is not None:
            options.setdefault("timeout", self._timeout)
        attempts = Attempts(self._budget, options.get("timeout"), self._reach)
        return Stream(self._stub, StreamState(prompt, options, attempts), self._metadata)

    def tokenize(
        self,
        text: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        model: str = "",
        add_special_tokens: bool = True,
    ) -> list[int]:
        return self._unary(calls.tokenize(text, messages, model, add_special_tokens))

    def detokenize(
        self, token_ids: Sequence[int], *, model: str = "", skip_special_tokens: bool = True
    ) -> str:
        return self._unary(calls.detokenize(token_ids, model, skip_special_tokens))

    def models(self) -> list[pb.Model]:
        return self._unary(calls.list_models())

    def model(self, name: str = "") -> pb.Model:
        """One model's context length, limits and features."""
        return self._unary(calls.get_model(name))

    def _unary(self, call: calls.UnaryCall[ReplyT]) -> ReplyT:
        attempts = Attempts(self._budget, self._timeout, self._reach)
        while True:
            try:
                method = getattr(self._stub, call.method)
                left = attempts.remaining()
                reply = call.read(_invoke(method, call.request, left, self._metadata))
            except grpc.RpcError as error:
                threading.Event().wait(attempts.delay_after(from_rpc_error(error)))
            else:
                attempts.succeeded()
                return reply

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
