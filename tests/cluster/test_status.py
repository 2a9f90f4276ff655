"""Each error has one status, with details, and comes back as what it was."""

from collections.abc import Iterator

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import example, given
from hypothesis import strategies as st

from cluster import errors
from cluster.errors import (
    DeadlineExceeded,
    DigestMismatch,
    Draining,
    DuplicateRequest,
    FingerprintMismatch,
    InternalError,
    InvalidRequest,
    NoWorker,
    Overloaded,
    PenstockError,
    StreamInterrupted,
    TransferFailed,
    Unauthenticated,
    UnknownModel,
    UnknownPeer,
    UnsupportedFeature,
    WorkerLost,
)
from cluster.status import STATUS, from_status, status_code, to_status

Code = grpc.StatusCode

CASES = [
    (InvalidRequest("stop.max_tokens", "Too many."), Code.INVALID_ARGUMENT, "BadRequest"),
    (UnsupportedFeature("adapter"), Code.UNIMPLEMENTED, None),
    (UnknownModel("gpt", "tiny"), Code.NOT_FOUND, "ResourceInfo"),
    (Unauthenticated("No token."), Code.UNAUTHENTICATED, None),
    (DuplicateRequest("In flight."), Code.ALREADY_EXISTS, None),
    (Overloaded("Full.", retry_after_s=2.5), Code.UNAVAILABLE, "RetryInfo"),
    (Draining("Going."), Code.UNAVAILABLE, "RetryInfo"),
    (NoWorker("None."), Code.UNAVAILABLE, "RetryInfo"),
    (WorkerLost("Gone."), Code.UNAVAILABLE, None),
    (StreamInterrupted("Cut.", tokens_emitted=7), Code.ABORTED, None),
    (TransferFailed("Short."), Code.ABORTED, None),
    (UnknownPeer("Nobody knows it."), Code.ABORTED, None),
    (DigestMismatch("Wrong."), Code.DATA_LOSS, None),
    (DeadlineExceeded("queue", tokens_emitted=3), Code.DEADLINE_EXCEEDED, None),
    (FingerprintMismatch("num_layers: 2, not 4"), Code.FAILED_PRECONDITION, None),
    (InternalError(), Code.INTERNAL, None),
]


def all_errors(base: type[PenstockError] = PenstockError) -> Iterator[type[PenstockError]]:
    yield base
    for derived in base.__subclasses__():
        yield from all_errors(derived)


def details(error: PenstockError) -> dict[str, object]:
    trailing = dict(to_status(error).trailing)
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    found = {}
    for packed in status.details:
        name = packed.TypeName().rpartition(".")[2]
        message = getattr(error_details_pb2, name)()
        assert packed.Unpack(message)
        found[name] = message
    assert status.code == to_status(error).code.value[0]
    return found


@pytest.mark.parametrize(("error", "code", "extra"), CASES, ids=lambda case: type(case).__name__)
def test_an_error_has_its_status_and_details(
    error: PenstockError, code: grpc.StatusCode, extra: str | None
) -> None:
    status = to_status(error)
    assert (status.code, status.message) == (code, error.message)
    found = details(error)
    assert set(found) == {"ErrorInfo", extra} - {None}
    info = found["ErrorInfo"]
    assert (info.reason, info.domain, dict(info.metadata)) == (
        error.reason,
        "penstock",
        error.metadata,
    )
    match found.get(extra):
        case error_details_pb2.BadRequest() as bad:
            assert [(v.field, v.description) for v in bad.field_violations] == [
                ("stop.max_tokens", "Too many.")
            ]
        case error_details_pb2.ResourceInfo() as resource:
            assert (resource.resource_type, resource.resource_name) == ("model", "gpt")
        case error_details_pb2.RetryInfo() as retry:
            seconds = retry.retry_delay.ToMicroseconds() / 1e6
            assert seconds == error.retry_after_s
            pushback = dict(status.trailing)["grpc-retry-pushback-ms"]
            assert pushback == str(round(seconds * 1000))


@pytest.mark.parametrize(("error", "code", "extra"), CASES, ids=lambda case: type(case).__name__)
def test_an_error_comes_back_as_what_it_was(
    error: PenstockError, code: grpc.StatusCode, extra: str | None
) -> None:
    back = from_status(*to_status(error))
    assert type(back) is type(error)
    assert vars(back) == vars(error)
    assert str(back) == str(error)


def test_every_error_has_a_status_and_a_reason_of_its_own() -> None:
    every = [error for error in all_errors() if error.__module__ == errors.__name__]
    assert all(status_code(error.__new__(error)) in Code for error in every)
    reasons = [error.reason for error in every]
    assert len(set(reasons)) == len(reasons)
    assert all(r.isupper() and len(r) <= 63 for r in reasons)
    assert set(every) == set(STATUS)


def test_what_clients_retry_by_themselves_has_sent_nothing() -> None:
    unavailable = {error for error in STATUS if STATUS[error] is Code.UNAVAILABLE}
    assert {Overloaded, Draining, NoWorker, WorkerLost} < unavailable
    sent = (StreamInterrupted, TransferFailed, DeadlineExceeded, InternalError, errors.CallerError)
    assert not any(issubclass(error, sent) for error in unavailable)


def test_an_internal_error_tells_its_id_and_nothing_else() -> None:
    error = InternalError()
    error.__cause__ = ValueError("secret of the house")
    status = to_status(error)
    assert "secret" not in repr(status)
    assert error.error_id in status.message


texts = st.builds(lambda text, times: text * times, st.text(max_size=50), st.integers(0, 200))


@given(field=texts, message=texts)
@example(field="🙂" * 1000, message="🙂" * 2000)
@example(field="\ud800", message="\udfff")
def test_what_a_caller_sent_never_makes_trailers_too_large(field: str, message: str) -> None:
    for error in (InvalidRequest(field, message), UnknownModel(message, "tiny")):
        status = to_status(error)
        num_bytes = sum(len(key) + len(value) for key, value in status.trailing)
        # Details travel as base64; gRPC's limit on all trailers is 8 KiB.
        assert num_bytes * 4 / 3 + 3 * len(status.message.encode()) < 8192


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (Code.UNAVAILABLE, WorkerLost),
        (Code.CANCELLED, WorkerLost),
        (Code.INTERNAL, WorkerLost),
        (Code.UNKNOWN, WorkerLost),
        (Code.DEADLINE_EXCEEDED, DeadlineExceeded),
        (Code.RESOURCE_EXHAUSTED, InvalidRequest),
        (Code.UNAUTHENTICATED, Unauthenticated),
        (Code.UNIMPLEMENTED, UnsupportedFeature),
    ],
)
@pytest.mark.parametrize("trailing", [(), (("grpc-status-details-bin", b"\xff\xffnonsense"),)])
def test_a_status_that_is_not_ours_becomes_an_error_too(
    code: grpc.StatusCode,
    expected: type[PenstockError],
    trailing: tuple[tuple[str, bytes], ...],
) -> None:
    error = from_status(code, "failed to connect", trailing)
    assert type(error) is expected
    assert "failed to connect" in error.message
    assert to_status(error)


@given(trailing=st.binary(max_size=200))
def test_any_bytes_as_details_are_survived(trailing: bytes) -> None:
    assert from_status(Code.ABORTED, "x", [("grpc-status-details-bin", trailing)])


def test_details_of_another_domain_are_not_ours() -> None:
    status = status_pb2.Status(code=3)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="OVERLOADED", domain="example"))
    trailing = [("grpc-status-details-bin", status.SerializeToString())]
    assert type(from_status(Code.INVALID_ARGUMENT, "no", trailing)) is InvalidRequest
