"""Offers what users import: `Client`, `AsyncClient` and their errors. Needs only grpcio and
protobuf. Loaded when first used: the cluster's own processes import `penstock.v1` and no more.

    from penstock import Client
    with Client("127.0.0.1:50051") as client:
        for chunk in client.generate("What does len do?"):
            print(chunk.text, end="", flush=True)
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.aio import AsyncClient, AsyncStream
    from penstock.answer import Accepted, Answer, Choice, Chunk, Logprob, Usage
    from penstock.client import Client, Stream
    from penstock.errors import (
        AnswerGoneError,
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

_HOMES = ("client", "aio", "answer", "errors", "request", "retry")


def __getattr__(name: str) -> object:
    if name in __all__:
        for home in _HOMES:
            module = importlib.import_module(f"penstock.{home}")
            if name in vars(module):
                return vars(module)[name]
    raise AttributeError(f"module 'penstock' has no attribute '{name}'")


__all__ = [
    "Accepted",
    "Answer",
    "AnswerGoneError",
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
