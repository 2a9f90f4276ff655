"""What users import: `Client`, `AsyncClient` and their errors. Needs only grpcio and protobuf.

from penstock import Client
with Client("127.0.0.1:50051") as client:
    for chunk in client.generate("What does len do?"):
        print(chunk.text, end="", flush=True)
"""

from penstock.aio import AsyncClient, AsyncStream
from penstock.answer import Accepted, Answer, Choice, Chunk, Logprob, Usage
from penstock.client import Client, Stream
from penstock.errors import (
    CallerError,
    DeadlineExceededError,
    DuplicateRequestError,
    IncompleteStreamError,
    InternalError,
    InvalidRequestError,
    NoWorkerError,
    OverloadedError,
    PeerError,
    PenstockError,
    QuotaError,
    RequestCancelledError,
    ResourceError,
    StreamInterruptedError,
    UnauthenticatedError,
    UnknownModelError,
    UnreachableError,
    UnsupportedFeatureError,
    WorkerLostError,
)
from penstock.request import GenerateOptions, Message
from penstock.retry import RetryPolicy

__version__ = "0.1.0"

__all__ = [
    "Accepted",
    "Answer",
    "AsyncClient",
    "AsyncStream",
    "CallerError",
    "Choice",
    "Chunk",
    "Client",
    "DeadlineExceededError",
    "DuplicateRequestError",
    "GenerateOptions",
    "IncompleteStreamError",
    "InternalError",
    "InvalidRequestError",
    "Logprob",
    "Message",
    "NoWorkerError",
    "OverloadedError",
    "PeerError",
    "PenstockError",
    "QuotaError",
    "RequestCancelledError",
    "ResourceError",
    "RetryPolicy",
    "Stream",
    "StreamInterruptedError",
    "UnauthenticatedError",
    "UnknownModelError",
    "UnreachableError",
    "UnsupportedFeatureError",
    "Usage",
    "WorkerLostError",
]
