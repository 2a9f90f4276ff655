"""Every error of Penstock, and whose fault it is. The status table is in `cluster/status.py`.

PenstockError
├── CallerError                the request is wrong: never retried
│   ├── InvalidRequest         a field is wrong (names it)
│   ├── UnsupportedFeature     a known field that is not supported yet (names it)
│   ├── UnknownModel
│   ├── UnknownService         health is asked for a name that nobody serves here
│   ├── Unauthenticated
│   ├── DuplicateRequest       the same request id is in flight
│   ├── AnswerGone             it is attached to and not kept (any more)
│   └── AnswerMoved            its client goes on with it by another call
├── ResourceError              nothing was executed: retried after `retry_after_s`
│   ├── Overloaded
│   ├── Draining
│   ├── NoWorker
│   └── QuotaExceeded          the caller's own: not our overload
├── PeerError                  another process failed us
│   ├── WorkerLost             retried elsewhere while nothing has been sent
│   ├── StreamInterrupted      lost after tokens were sent
│   ├── WorkersDied            several that had the request: it may be what they die of
│   ├── StoreUnavailable       the store of membership did not answer in time
│   ├── StaleIncarnation       a newer life of the same worker has registered
│   └── TransferFailed         a hand-over; decode recomputes
│       └── DigestMismatch
├── DeadlineExceeded
├── StartupError               refused before serving
│   ├── ConfigError
│   ├── CheckpointError
│   ├── WeightsError           they cannot be pulled, or are not those that are wanted
│   │   └── WeightsBrokenOff   what came is kept, and the rest may come later
│   └── FingerprintMismatch
├── SupervisionError           nothing would be started again any more
└── InternalError              our bug: an id for the log, nothing else
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence


class PenstockError(Exception):
    """Base of all. `reason` is stable and UPPER_SNAKE_CASE; the message is a sentence that
    says what to do."""

    reason = "PENSTOCK"

    def __init__(self, message: str, *, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})


class CallerError(PenstockError):
    reason = "CALLER"


class InvalidRequest(CallerError):
    reason = "INVALID_REQUEST"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message, metadata={"field": field})
        self.field = field


class UnsupportedFeature(CallerError):
    reason = "UNSUPPORTED_FEATURE"

    def __init__(self, feature: str, message: str | None = None) -> None:
        super().__init__(
            message or f"'{feature}' is not supported yet: leave it out.",
            metadata={"feature": feature},
        )
        self.feature = feature


class UnknownModel(CallerError):
    reason = "UNKNOWN_MODEL"

    def __init__(self, model: str, served: str) -> None:
        super().__init__(
            f"Model '{model}' is not served here; served: '{served}'.", metadata={"model": model}
        )
        self.model = model


class UnknownService(CallerError):
    reason = "UNKNOWN_SERVICE"

    def __init__(self, service: str, served: Iterable[str]) -> None:
        known = ", ".join(f"'{name}'" for name in served)
        super().__init__(f"No service '{service}' here; known: {known}.")


class Unauthenticated(CallerError):
    reason = "UNAUTHENTICATED"


class DuplicateRequest(CallerError):
    reason = "DUPLICATE_REQUEST"


class AnswerGone(CallerError):
    reason = "ANSWER_GONE"


class AnswerMoved(CallerError):
    reason = "ANSWER_MOVED"


class ResourceError(PenstockError):
    reason = "RESOURCE"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(ResourceError):
    reason = "OVERLOADED"


class Draining(ResourceError):
    reason = "DRAINING"


class NoWorker(ResourceError):
    reason = "NO_WORKER"


class QuotaExceeded(ResourceError):
    reason = "RATE_LIMIT_EXCEEDED"


class PeerError(PenstockError):
    reason = "PEER"


class WorkerLost(PeerError):
    reason = "WORKER_LOST"


class StreamInterrupted(PeerError):
    reason = "STREAM_INTERRUPTED"

    def __init__(self, message: str, *, tokens_emitted: int, is_detached: bool = False) -> None:
        """`is_detached`: here alone; the answer may go on, and be attached to."""
        metadata = {"detached": "true"} if is_detached else {}
        super().__init__(message, metadata={"tokens_emitted": str(tokens_emitted), **metadata})
        self.tokens_emitted = tokens_emitted


class WorkersDied(PeerError):
    reason = "WORKERS_DIED"

    def __init__(self, request_id: str, workers: Sequence[str], *, tokens_emitted: int) -> None:
        names = ", ".join(f"'{worker}'" for worker in workers)
        super().__init__(
            f"{len(workers)} workers died while they had request '{request_id}' ({names}): it is"
            " given to no other, for it may be what they die of. Change it before you send it"
            " again.",
            metadata={"request_id": request_id, "tokens_emitted": str(tokens_emitted)},
        )
        self.tokens_emitted = tokens_emitted


class StoreUnavailable(PeerError):
    reason = "STORE_UNAVAILABLE"


class StaleIncarnation(PeerError):
    reason = "STALE_INCARNATION"


class TransferFailed(PeerError):
    reason = "TRANSFER_FAILED"


class DigestMismatch(TransferFailed):
    reason = "DIGEST_MISMATCH"


class UnknownPeer(TransferFailed):
    reason = "UNKNOWN_PEER"


class DeadlineExceeded(PenstockError):
    reason = "DEADLINE_EXCEEDED"

    def __init__(self, phase: str, *, tokens_emitted: int = 0) -> None:
        super().__init__(
            f"The deadline passed in {phase}, after {tokens_emitted} tokens.",
            metadata={"phase": phase, "tokens_emitted": str(tokens_emitted)},
        )


class StartupError(PenstockError):
    reason = "STARTUP"


class ConfigError(StartupError):
    reason = "CONFIG"


class CheckpointError(StartupError):
    reason = "CHECKPOINT"


class WeightsError(StartupError):
    reason = "WEIGHTS"


class WeightsBrokenOff(WeightsError):
    reason = "WEIGHTS_BROKEN_OFF"


class FingerprintMismatch(StartupError):
    reason = "FINGERPRINT_MISMATCH"


class SupervisionError(PenstockError):
    reason = "SUPERVISION"


class InternalError(PenstockError):
    reason = "INTERNAL"

    def __init__(self, error_id: str | None = None) -> None:
        self.error_id = error_id or uuid.uuid4().hex
        super().__init__(
            f"An internal error happened; its id in the log is {self.error_id}.",
            metadata={"error_id": self.error_id},
        )
