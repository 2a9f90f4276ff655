"""One answer without its I/O: what both clients share. It says what to send, takes what came, and
decides between a retry, going on where its stream was lost, a typed error and the end."""

import grpc

from penstock.answer import Accepted, Answer, Chunk, Fold
from penstock.errors import (
    DETACHED,
    DeadlineExceededError,
    PenstockError,
    RequestCancelledError,
    StreamInterruptedError,
    UnreachableError,
)
from penstock.errors import from_rpc_error as typed
from penstock.request import GenerateOptions, build_request
from penstock.retry import Attempts, is_disconnected
from penstock.v1 import inference_pb2 as pb

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
# Pings find a dead peer in 40 s, and are few enough for any server's ping policy.
CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A server that comes back, perhaps elsewhere under its name, is found within a second.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    # Retries are ours: gRPC's would not share our budget.
    ("grpc.enable_retries", 0),
)
LOOPBACK = ("127.", "localhost:", "[::1]:")


def channel_options(address: str, connect_timeout: float = 0.0) -> list[tuple[str, int]]:
    """A proxy that the environment names is not for this machine's own processes. One try to
    connect to who does not answer takes 5 s, or the timeout if that is less."""
    is_local = address.startswith(LOOPBACK)
    seconds = min(5.0, max(1.0, connect_timeout or 5.0))
    return [
        *CHANNEL_OPTIONS,
        ("grpc.min_reconnect_backoff_ms", round(1000 * seconds)),
        ("grpc.enable_http_proxy", int(not is_local)),
    ]


class StreamState:
    """The state of one stream."""

    def __init__(self, prompt: str | None, options: GenerateOptions, attempts: Attempts) -> None:
        self._request = build_request(prompt, options)
        self._interruption: PenstockError | None = None  # after which it may go on, not yet does
        self._epoch = 0  # how often it was interrupted
        self.attempts = attempts
        self.fold = Fold()
        self.is_over = False
        self.was_closed = False

    @property
    def accepted(self) -> Accepted | None:
        return self.fold.accepted

    @property
    def method(self) -> str:
        """Names the RPC of the next attempt."""
        return "Attach" if self._interruption else "Generate"

    @property
    def request(self) -> pb.GenerateRequest | pb.AttachRequest:
        """The request of the next attempt."""
        if self._interruption is None or (accepted := self.fold.accepted) is None:
            return self._request
        return pb.AttachRequest(
            request_id=accepted.request_id,
            resume_secret=accepted.resume_secret,
            next_index=map(self.fold.next_index, range(self._request.n or 1)),
            decode_worker=accepted.decode_worker,
            epoch=self._epoch,
        )

    def next_timeout(self) -> float | None:
        """Seconds for the next attempt; raises when there is to be none."""
        if self.was_closed:
            raise self.cancelled()
        try:
            return self.attempts.remaining()
        except PenstockError:
            self.is_over = True
            raise

    def received(self, message: pb.GenerateResponse) -> list[Chunk]:
        if self.fold.accepted is None or self._interruption:
            self.attempts.succeeded()
            self._interruption = None
        return self.fold.add(message)

    def ended(self) -> Answer:
        """The server closed the stream: complete, or IncompleteStreamError."""
        self.is_over = True
        return self.fold.answer()

    def failed(self, error: grpc.RpcError) -> float:
        """Seconds until the next attempt; raises the typed error when there is none."""
        try:
            if self.was_closed:
                raise self.cancelled()
            if self.fold.accepted is not None:
                return self._resumed_after(typed(error), self.fold.accepted)
            return self.attempts.delay_after(typed(error))
        except PenstockError:
            self.is_over = True
            raise

    def closed(self) -> None:
        """The reader wants no more."""
        self.was_closed = self.was_closed or not self.is_over

    def cancelled(self) -> RequestCancelledError:
        self.is_over = True
        return RequestCancelledError("The stream was closed by its reader.")

    def _resumed_after(self, error: PenstockError, accepted: Accepted) -> float:
        """Seconds until the answer is asked for where it goes on."""
        is_lost = is_disconnected(error) or DETACHED in error.metadata
        if self._interruption is None:
            if not (is_lost and accepted.resume_secret):
                raise self._interrupted(error)
            self._interruption = self._interrupted(error)
        self._epoch += 1
        try:
            return self.attempts.delay_after(_away(error) if is_lost else error)
        except DeadlineExceededError as late:
            raise self._interrupted(late) from self._interruption
        except PenstockError as failure:
            raise self._interruption from failure

    def _interrupted(self, error: PenstockError) -> PenstockError:
        """Once tokens came, a lost connection is no reason to believe that nothing happened."""
        count = str(self.fold.tokens_emitted)
        if error.code is not grpc.StatusCode.UNAVAILABLE:
            error.metadata["tokens_emitted"] = count
            return error
        return StreamInterruptedError(
            f"The stream was lost after {count} tokens: {error.message}",
            code=error.code,
            metadata={**error.metadata, "tokens_emitted": count},
        )


def _away(error: PenstockError) -> PenstockError:
    """The same loss, as one of a server that is away: its answer waits for us elsewhere."""
    return UnreachableError(error.message, code=grpc.StatusCode.UNAVAILABLE)
