"""The status table: which gRPC status each error of Penstock has, with its `google.rpc` details,
and back from a status to the error, for whoever calls one of our servers.

The error's `reason` in `ErrorInfo` picks the class on the way back; a status without it comes
from gRPC itself, or from a stranger.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from cluster.errors import (
    AnswerGone,
    AnswerMoved,
    CallerError,
    CheckpointError,
    ConfigError,
    DeadlineExceeded,
    DigestMismatch,
    Draining,
    DuplicateRequest,
    FingerprintMismatch,
    InternalError,
    InvalidRequest,
    NoWorker,
    Overloaded,
    PeerError,
    PenstockError,
    QuotaExceeded,
    ResourceError,
    StaleIncarnation,
    StartupError,
    StoreUnavailable,
    StreamInterrupted,
    SupervisionError,
    TransferFailed,
    Unauthenticated,
    UnknownModel,
    UnknownPeer,
    UnknownService,
    UnsupportedFeature,
    WeightsBrokenOff,
    WeightsError,
    WorkerLost,
    WorkersDied,
)

DOMAIN: Final = "penstock"
DETAILS_KEY: Final = "grpc-status-details-bin"
PUSHBACK_KEY: Final = "grpc-retry-pushback-ms"

# All trailers of a call share 8 KiB (gRPC's default): what a caller sent comes back cut.
MAX_MESSAGE_BYTES: Final = 1_000
MAX_VALUE_BYTES: Final = 200

_Code = grpc.StatusCode

# A class that is not here has the status of its nearest base.
STATUS: Final[Mapping[type[PenstockError], grpc.StatusCode]] = {
    PenstockError: _Code.INTERNAL,
    CallerError: _Code.INVALID_ARGUMENT,
    InvalidRequest: _Code.INVALID_ARGUMENT,
    UnsupportedFeature: _Code.UNIMPLEMENTED,
    UnknownModel: _Code.NOT_FOUND,
    UnknownService: _Code.NOT_FOUND,
    Unauthenticated: _Code.UNAUTHENTICATED,
    DuplicateRequest: _Code.ALREADY_EXISTS,
    AnswerGone: _Code.NOT_FOUND,
    AnswerMoved: _Code.ABORTED,
    ResourceError: _Code.UNAVAILABLE,
    Overloaded: _Code.UNAVAILABLE,
    Draining: _Code.UNAVAILABLE,
    NoWorker: _Code.UNAVAILABLE,
    QuotaExceeded: _Code.RESOURCE_EXHAUSTED,
    PeerError: _Code.ABORTED,
    WorkerLost: _Code.UNAVAILABLE,  # nothing was sent
    StreamInterrupted: _Code.ABORTED,
    WorkersDied: _Code.ABORTED,
    StoreUnavailable: _Code.UNAVAILABLE,
    StaleIncarnation: _Code.ABORTED,
    TransferFailed: _Code.ABORTED,
    DigestMismatch: _Code.DATA_LOSS,
    UnknownPeer: _Code.ABORTED,
    DeadlineExceeded: _Code.DEADLINE_EXCEEDED,
    StartupError: _Code.FAILED_PRECONDITION,
    ConfigError: _Code.FAILED_PRECONDITION,
    CheckpointError: _Code.FAILED_PRECONDITION,
    WeightsError: _Code.FAILED_PRECONDITION,
    WeightsBrokenOff: _Code.FAILED_PRECONDITION,
    FingerprintMismatch: _Code.FAILED_PRECONDITION,
    SupervisionError: _Code.INTERNAL,
    InternalError: _Code.INTERNAL,
}

_BY_REASON: Final = {error.reason: error for error in STATUS}

# What a status without our details means to a caller of one of our servers.
_BY_CODE: Final[Mapping[grpc.StatusCode, type[PenstockError]]] = {
    _Code.INVALID_ARGUMENT: InvalidRequest,
    _Code.RESOURCE_EXHAUSTED: InvalidRequest,  # gRPC: the message is too large
    _Code.OUT_OF_RANGE: InvalidRequest,
    _Code.UNIMPLEMENTED: UnsupportedFeature,
    _Code.UNAUTHENTICATED: Unauthenticated,
    _Code.PERMISSION_DENIED: Unauthenticated,
    _Code.ALREADY_EXISTS: DuplicateRequest,
    _Code.DEADLINE_EXCEEDED: DeadlineExceeded,
}

_BY_NUMBER: Final = {code.value[0]: code for code in grpc.StatusCode}


class RpcStatus(NamedTuple):
    """Holds what a handler ends its call with: `context.abort(*status)`."""

    code: grpc.StatusCode
    message: str
    trailing: tuple[tuple[str, str | bytes], ...]


def status_code(error: PenstockError) -> grpc.StatusCode:
    return next(STATUS[base] for base in type(error).__mro__ if base in STATUS)


def to_status(error: PenstockError) -> RpcStatus:
    code, message = status_code(error), cut(error.message, MAX_MESSAGE_BYTES)
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in _details(error):
        status.details.add().Pack(detail)
    trailing: list[tuple[str, str | bytes]] = [(DETAILS_KEY, status.SerializeToString())]
    if isinstance(error, ResourceError):
        trailing.append((PUSHBACK_KEY, str(round(error.retry_after_s * 1000))))
    return RpcStatus(code, message, tuple(trailing))


def from_rpc_error(error: grpc.aio.AioRpcError) -> PenstockError:
    """The error behind a failed call to one of our servers."""
    trailing: Any = error.trailing_metadata() or ()  # its stub types are not iterable
    return from_status(error.code(), error.details() or "", trailing)


def status_bytes(error: PenstockError) -> bytes:
    """The error as a `google.rpc.Status`, where there are no trailers."""
    return next(value for key, value in to_status(error).trailing if isinstance(value, bytes))


def from_status_bytes(data: bytes) -> PenstockError:
    """The error that `status_bytes` was given; WorkerLost for bytes that are none."""
    try:
        status = status_pb2.Status.FromString(data)
    except DecodeError:
        return WorkerLost("A call ended with bytes that are no status.")
    code = _BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)
    return from_status(code, status.message, ((DETAILS_KEY, data),))


def from_status(
    code: grpc.StatusCode, message: str, trailing: Iterable[tuple[str, str | bytes]] = ()
) -> PenstockError:
    details = _parsed(trailing)
    if details is None or details.reason not in _BY_REASON:
        return _without_details(code, message)
    error_class = _BY_REASON[details.reason]
    return _rebuilt(error_class, message, details.metadata, details.retry_after_s)


# Details


class _Details(NamedTuple):
    reason: str
    metadata: dict[str, str]
    retry_after_s: float


def _details(error: PenstockError) -> list[Message]:
    metadata = {key: cut(value, MAX_VALUE_BYTES) for key, value in error.metadata.items()}
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    details: list[Message] = [info]
    match error:
        case InvalidRequest():
            details.append(_bad_request(metadata["field"], error.message))
        case UnknownModel():
            details.append(
                error_details_pb2.ResourceInfo(
                    resource_type="model",
                    resource_name=metadata["model"],
                    description=cut(error.message, MAX_VALUE_BYTES),
                )
            )
        case ResourceError():
            details.append(error_details_pb2.RetryInfo(retry_delay=_duration(error.retry_after_s)))
    return details


def _bad_request(field: str, message: str) -> error_details_pb2.BadRequest:
    violation = error_details_pb2.BadRequest.FieldViolation(
        field=field, description=cut(message, MAX_MESSAGE_BYTES)
    )
    return error_details_pb2.BadRequest(field_violations=[violation])


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMicroseconds(round(seconds * 1_000_000))
    return duration


def cut(text: str, num_bytes: int) -> str:
    """Shortens a text to so many bytes, whole characters of valid Unicode."""
    encoded = text.encode(errors="replace")  # a lone surrogate would end the call unanswered
    if len(encoded) <= num_bytes:
        return encoded.decode()
    return encoded[: num_bytes - len("…".encode())].decode(errors="ignore") + "…"


def _parsed(trailing: Iterable[tuple[str, str | bytes]]) -> _Details | None:
    """None where there are no details, or none of ours."""
    packed = next((value for key, value in trailing if key == DETAILS_KEY), None)
    if not isinstance(packed, bytes):
        return None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    try:
        for detail in status_pb2.Status.FromString(packed).details:
            _unpack(detail, (info, retry))
    except DecodeError:
        return None
    if info.domain != DOMAIN:
        return None
    return _Details(info.reason, dict(info.metadata), retry.retry_delay.ToMicroseconds() / 1e6)


def _unpack(detail: AnyMessage, messages: Sequence[Message]) -> None:
    for message in messages:
        detail.Unpack(message)  # only where it has this type


# Back


def _rebuilt(
    error_class: type[PenstockError], message: str, metadata: dict[str, str], retry_after_s: float
) -> PenstockError:
    """An error as its constructor would make it, with the message that travelled."""
    error = error_class.__new__(error_class)
    PenstockError.__init__(error, message, metadata=metadata)
    match error:
        case InvalidRequest():
            error.field = metadata.get("field", "")
        case UnsupportedFeature():
            error.feature = metadata.get("feature", "")
        case UnknownModel():
            error.model = metadata.get("model", "")
        case ResourceError():
            error.retry_after_s = retry_after_s
        case StreamInterrupted() | WorkersDied():
            error.tokens_emitted = _count(metadata.get("tokens_emitted", ""))
        case InternalError():
            error.error_id = metadata.get("error_id", "")
    return error


def _count(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0


def _without_details(code: grpc.StatusCode, message: str) -> PenstockError:
    metadata = {
        InvalidRequest: {"field": "request"},
        UnsupportedFeature: {"feature": "rpc"},
        DeadlineExceeded: {"phase": "call", "tokens_emitted": "0"},
    }
    error_class = _BY_CODE.get(code, WorkerLost)
    sentence = f"The call failed with {code.name}: {message or 'no message'}"
    return _rebuilt(error_class, sentence, dict(metadata.get(error_class, {})), 0.0)
