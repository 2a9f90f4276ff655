"""Says what a call ends with, whatever was raised inside it: one error, with a true count of what
was sent. Knows no protocol.
"""

import asyncio
import logging
from typing import Protocol

from cluster.errors import (
    DeadlineExceeded,
    Draining,
    InternalError,
    PenstockError,
    StreamInterrupted,
)
from cluster.open_calls import OpenCalls

logger = logging.getLogger(__name__)

# The server gives up this much before the client does, so that the status and its details
# reach the client rather than its own timer.
DEADLINE_MARGIN_S = 0.025


class CallProgress(Protocol):
    """How far a call has come."""

    @property
    def phase(self) -> str: ...

    @property
    def tokens_emitted(self) -> int: ...

    @property
    def remaining_s(self) -> float | None: ...


def blamed(error: BaseException, call: CallProgress, open_calls: OpenCalls) -> PenstockError:
    """Returns the one error that a call ends with. A bug is logged here, and only here, with its
    id. Raises CancelledError where the caller has ended the call: there is nobody to tell."""
    if isinstance(error, asyncio.CancelledError):
        return _of_cancelled(error, call, open_calls)
    return cut_off(call) if open_calls.is_cut_off else _of_raised(error, call)


def cut_off(call: CallProgress) -> PenstockError:
    """Makes what a caller is told by a server that stops before the answer is whole."""
    if num_tokens := call.tokens_emitted:
        return StreamInterrupted(
            f"The server stopped after {num_tokens} tokens were sent.",
            tokens_emitted=num_tokens,
            is_detached=True,
        )
    return Draining("This server stops: send the request to another one, or again.")


def _of_cancelled(
    error: asyncio.CancelledError, call: CallProgress, open_calls: OpenCalls
) -> PenstockError:
    task = asyncio.current_task()
    if task is None or not task.cancelling():
        # Nobody cancelled this call: something inside it was, which is our bug.
        return _of_raised(error, call)
    if not open_calls.is_cut_off:
        raise error
    task.uncancel()
    return cut_off(call)


def _of_raised(error: BaseException, call: CallProgress) -> PenstockError:
    has_ended = call.remaining_s is not None and call.remaining_s < DEADLINE_MARGIN_S
    ours: list[PenstockError] = []
    bugs: list[BaseException] = []
    for leaf in _leaves(error):
        if isinstance(leaf, PenstockError):
            ours.append(leaf)
        elif isinstance(leaf, TimeoutError) and has_ended:
            ours.append(DeadlineExceeded(call.phase, tokens_emitted=call.tokens_emitted))
        else:
            bugs.append(leaf)
    if not bugs:
        return ours[0]
    failure = InternalError()
    logger.error("internal error %s", failure.error_id, exc_info=error)
    return failure


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
