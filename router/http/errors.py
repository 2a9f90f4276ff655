"""The error table of the HTTP door: which status, and what OpenAI's clients read in the body."""

from collections.abc import Mapping
from math import ceil
from typing import Final, NamedTuple

from cluster.errors import (
    AnswerGone,
    AnswerMoved,
    CallerError,
    DeadlineExceeded,
    DuplicateRequest,
    InvalidRequest,
    PeerError,
    PenstockError,
    QuotaExceeded,
    ResourceError,
    Unauthenticated,
    UnknownModel,
    UnknownService,
    UnsupportedFeature,
    WorkersDied,
)
from cluster.status import MAX_MESSAGE_BYTES, MAX_VALUE_BYTES, cut
from router.http.contract import NO_OTHER_NAMES, parameter
from router.http.typed_json import Struct, encode

Header = tuple[bytes, bytes]
CLOSE: Final[Header] = (b"connection", b"close")  # for what is refused before it is all there
_AGAIN_S: Final = 1.0  # after what failed for no fault of the request

# A class that is not here has the status of its nearest base. Never 408: clients send it again at
# once. 429 is a caller's own quota, and 503 our overload.
STATUS: Final[Mapping[type[PenstockError], int]] = {
    PenstockError: 500,
    CallerError: 400,
    InvalidRequest: 400,
    UnsupportedFeature: 400,
    UnknownModel: 404,
    UnknownService: 404,
    Unauthenticated: 401,
    DuplicateRequest: 409,
    AnswerGone: 404,
    AnswerMoved: 409,
    ResourceError: 503,
    QuotaExceeded: 429,
    PeerError: 503,
    WorkersDied: 500,  # never again: it may be what they die of
    DeadlineExceeded: 504,
}
_TYPES: Final = {401: "authentication_error", 429: "rate_limit_error"}


class HttpRefusal(CallerError):
    """What only this protocol knows: a path, a method, a header or a length that is wrong."""

    reason = "HTTP"

    def __init__(self, status: int, code: str, message: str, *headers: Header) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers


class ErrorBody(Struct):
    """What OpenAI's clients make an exception of."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(Struct):
    error: ErrorBody


class Failure(NamedTuple):
    """An error as it is sent."""

    status: int
    error: ErrorBody
    headers: list[Header]

    @property
    def body(self) -> bytes:
        return encode(ErrorReply(self.error))


def failure_of(error: PenstockError, names: Mapping[str, str] = NO_OTHER_NAMES) -> Failure:
    """`names`: what a kind of request calls fields that others call otherwise."""
    status = _status(error)
    told = ErrorBody(
        message=cut(error.message, MAX_MESSAGE_BYTES),
        type=_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error"),
        param=_param(error, names),
        code=_code(error),
    )
    return Failure(status, told, _headers(error, status))


def failure_frame(error: ErrorBody) -> bytes:
    """Ends a stream, as OpenAI's clients understand it."""
    return b"data: %b\n\n" % encode(ErrorReply(error))


def _status(error: PenstockError) -> int:
    if isinstance(error, HttpRefusal):
        return error.status
    return next(STATUS[base] for base in type(error).__mro__ if base in STATUS)


def _code(error: PenstockError) -> str:
    match error:
        case HttpRefusal(code=code):
            return code
        case UnknownModel():
            return "model_not_found"  # as OpenAI says it
        case Unauthenticated():
            return "invalid_api_key"
    return error.reason.lower()


def _param(error: PenstockError, names: Mapping[str, str]) -> str | None:
    match error:
        case InvalidRequest(field=field):
            return cut(parameter(field, names), MAX_VALUE_BYTES) or None
        case UnsupportedFeature(feature=feature):
            return cut(parameter(feature, names), MAX_VALUE_BYTES) or None
        case UnknownModel():
            return "model"
    return None


def _headers(error: PenstockError, status: int) -> list[Header]:
    """When to come again; OpenAI's clients send 409 and all from 500 again unless they are told
    not to."""
    if isinstance(error, HttpRefusal):
        return [*error.headers]
    after_s = _after_s(error)
    if after_s is None:
        return [(b"x-should-retry", b"false")] if status == 409 or status >= 500 else []
    return [
        (b"retry-after", b"%d" % max(1, ceil(after_s))),
        (b"retry-after-ms", b"%d" % max(1, round(after_s * 1000))),
    ]


def _after_s(error: PenstockError) -> float | None:
    match error:
        case ResourceError(retry_after_s=seconds):
            return seconds
        case PeerError() if not isinstance(error, WorkersDied):
            return _AGAIN_S
    return None
