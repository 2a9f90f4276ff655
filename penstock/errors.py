"""Names what a call can end with, as a client sees it. `from_rpc_error` reads the status and its
details; nothing else here knows gRPC.

PenstockError                   .reason .code .message .metadata
├── CallerError                 the request is wrong: sending it again changes nothing
│   ├── InvalidRequestError     .field
│   ├── UnsupportedFeatureError .feature
│   ├── UnknownModelError
│   ├── UnauthenticatedError
│   ├── DuplicateRequestError   the same request id is in flight
│   └── AnswerGoneError         one that was to go on is not kept any more
├── ResourceError               nothing was executed: .retry_after
│   ├── OverloadedError         also while draining
│   ├── NoWorkerError
│   ├── UnreachableError        no connection to the cluster
│   └── QuotaError              over a quota, or a message over the size limit
├── PeerError                   a part of the cluster failed
│   ├── WorkerLostError
│   ├── StreamInterruptedError  .tokens_emitted
│   └── IncompleteStreamError   the stream ended without its last message; .tokens_emitted
├── DeadlineExceededError       .phase .tokens_emitted
├── RequestCancelledError
└── InternalError               .error_id names it in the cluster's logs
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

DRAINING = "DRAINING"  # an OverloadedError's reason: this server goes away, another comes
DETACHED = "detached"  # in the metadata of a StreamInterruptedError: its answer may go on elsewhere
STATUS_DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"


class PenstockError(Exception):
    """Base of all."""

    reason = "PENSTOCK"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        code: grpc.StatusCode | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or type(self).reason
        self.code = code
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after  # seconds; negative: the server asks for no retry

    @property
    def tokens_emitted(self) -> int:
        """Tokens sent before the error."""
        count = self.metadata.get("tokens_emitted", "0")
        return int(count) if count.isdecimal() else 0


class CallerError(PenstockError):
    reason = "CALLER"


class InvalidRequestError(CallerError):
    reason = "INVALID_REQUEST"

    @property
    def field(self) -> str:
        return self.metadata.get("field", "")


class UnsupportedFeatureError(CallerError):
    reason = "UNSUPPORTED_FEATURE"

    @property
    def feature(self) -> str:
        return self.metadata.get("feature", "")


class UnknownModelError(CallerError):
    reason = "UNKNOWN_MODEL"


class UnauthenticatedError(CallerError):
    reason = "UNAUTHENTICATED"


class DuplicateRequestError(CallerError):
    reason = "DUPLICATE_REQUEST"


class AnswerGoneError(CallerError):
    reason = "ANSWER_GONE"


class ResourceError(PenstockError):
    reason = "RESOURCE"


class OverloadedError(ResourceError):
    reason = "OVERLOADED"


class NoWorkerError(ResourceError):
    reason = "NO_WORKER"


class UnreachableError(ResourceError):
    reason = "UNREACHABLE"


class QuotaError(ResourceError):
    reason = "QUOTA"


class PeerError(PenstockError):
    reason = "PEER"


class WorkerLostError(PeerError):
    reason = "WORKER_LOST"


class StreamInterruptedError(PeerError):
    reason = "STREAM_INTERRUPTED"


class IncompleteStreamError(PeerError):
    reason = "INCOMPLETE_STREAM"


class DeadlineExceededError(PenstockError):
    reason = "DEADLINE_EXCEEDED"

    @property
    def phase(self) -> str:
        """Tells where the request was: queue, prefill, transfer or decode; empty when unknown."""
        return self.metadata.get("phase", "")


class RequestCancelledError(PenstockError):
    reason = "CANCELLED"


class InternalError(PenstockError):
    reason = "INTERNAL"

    @property
    def error_id(self) -> str:
        return self.metadata.get("error_id", "")


BY_REASON: Mapping[str, type[PenstockError]] = {
    "INVALID_REQUEST": InvalidRequestError,
    "UNSUPPORTED_FEATURE": UnsupportedFeatureError,
    "UNKNOWN_MODEL": UnknownModelError,
    "UNAUTHENTICATED": UnauthenticatedError,
    "DUPLICATE_REQUEST": DuplicateRequestError,
    "OVERLOADED": OverloadedError,
    DRAINING: OverloadedError,
    "NO_WORKER": NoWorkerError,
    "RATE_LIMIT_EXCEEDED": QuotaError,
    "WORKER_LOST": WorkerLostError,
    "STREAM_INTERRUPTED": StreamInterruptedError,
    "ANSWER_GONE": AnswerGoneError,
    "DEADLINE_EXCEEDED": DeadlineExceededError,
    "INTERNAL": InternalError,
}

# For a status without a reason we know: a proxy, an older or a newer cluster.
BY_CODE: Mapping[grpc.StatusCode, type[PenstockError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedFeatureError,
    grpc.StatusCode.NOT_FOUND: UnknownModelError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: UnauthenticatedError,
    grpc.StatusCode.ALREADY_EXISTS: DuplicateRequestError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: QuotaError,
    grpc.StatusCode.UNAVAILABLE: UnreachableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.CANCELLED: RequestCancelledError,
    grpc.StatusCode.ABORTED: StreamInterruptedError,
    grpc.StatusCode.INTERNAL: InternalError,
}


@dataclass(slots=True, kw_only=True)
class _Trailers:
    """Holds what the trailers say beyond code and message."""

    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    retry_after: float | None = None


def _read_details(trailers: Iterable[Any] | None) -> _Trailers:
    details = _Trailers()
    for key, value in trailers or ():
        if key == STATUS_DETAILS_KEY and isinstance(value, bytes):
            _read_status(value, details)
    # The trailer counts more than the detail: it alone can forbid a retry.
    for key, value in trailers or ():
        if key == PUSHBACK_KEY:
            text = value if isinstance(value, str) else value.decode("ascii", "replace")
            # gRPC: a pushback that cannot be read forbids the retry as a negative one does.
            details.retry_after = int(text) / 1000 if text.isdecimal() else -1.0
    return details


def _read_status(serialized: bytes, details: _Trailers) -> None:
    try:
        status = status_pb2.Status.FromString(serialized)
    except DecodeError:
        return  # a proxy's own bytes: code and message still say what happened
    for packed in status.details:
        info = error_details_pb2.ErrorInfo()
        if packed.Unpack(info):
            details.reason = info.reason
            details.metadata.update(info.metadata)
        violations = error_details_pb2.BadRequest()
        if packed.Unpack(violations) and violations.field_violations:
            details.metadata.setdefault("field", violations.field_violations[0].field)
        retry = error_details_pb2.RetryInfo()
        if packed.Unpack(retry):
            details.retry_after = retry.retry_delay.ToTimedelta().total_seconds()


# What is wrong with a server's certificate, as gRPC says it, and what to do.
_UNTRUSTED: Mapping[str, str] = {
    "certificate has expired": "has ended, by this machine's clock: have it renewed",
    "certificate is not yet valid": "is not valid yet, by this machine's clock: set that right",
    "CERTIFICATE_VERIFY_FAILED": (
        "is not trusted here: give as ca_file who signed it, as a PEM file"
    ),
    "Hostname Verification": (
        "is for another host than the one that was dialled: dial it by a name that the certificate"
        " has, or give that as server_name"
    ),
}


def _untrusted(details: str) -> PenstockError | None:
    """None: the server was not refused for what it showed."""
    if "failed to connect" not in details:
        return None
    for symptom, what in _UNTRUSTED.items():
        if symptom in details:
            return UnauthenticatedError(
                f"The server's certificate {what}. Nothing was said to it.",
                code=grpc.StatusCode.UNAUTHENTICATED,
            )
    if "WRONG_VERSION_NUMBER" in details:
        return UnauthenticatedError(
            "The server speaks no TLS there: leave out grpcs:// and all files of certificates, if"
            " what is said may be read on its way. Nothing was said to it.",
            code=grpc.StatusCode.UNAUTHENTICATED,
        )
    return None


def from_rpc_error(error: grpc.RpcError) -> PenstockError:
    """The typed error of a failed call, sync or async."""
    if (untrusted := _untrusted(error.details() or "")) is not None:
        return untrusted
    code: grpc.StatusCode = error.code()
    details = _read_details(error.trailing_metadata())
    kind = BY_REASON.get(details.reason) or BY_CODE.get(code, PenstockError)
    if kind is UnreachableError and details.reason:
        kind = ResourceError  # it answers: of a cluster newer than we
    return kind(
        error.details() or f"The call ended with {code.name}.",
        reason=details.reason or None,
        code=code,
        metadata=details.metadata,
        retry_after=details.retry_after,
    )
