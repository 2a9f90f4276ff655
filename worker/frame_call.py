"""One streaming call over frames, as its handler sees it, and how it goes on without who asked."""

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

from google.protobuf.message import Message

from cluster.errors import AnswerMoved, PeerError, PenstockError, WorkerLost
from cluster.frames.connection import FrameConnection
from cluster.frames.wire import WINDOW_BYTES, FrameKind, cost, in_parts
from cluster.rpc import encoded
from cluster.status import status_bytes
from worker.kept_messages import KeptMessages
from worker.outliving import AnswerKey


class Guest(Protocol):
    """Who hears it, over a connection."""

    connection: FrameConnection
    calls: "dict[int, FrameCall]"  # by stream
    is_outlived: bool  # it knows that its answers do

    @property
    def hears(self) -> bool:
        """Whether what is said to it leaves."""
        ...

    def keep(self, key: AnswerKey, call: "FrameCall") -> None:
        """Has the call found by this key from now on."""
        ...


class FrameCall:
    """One call as its handler sees it; as `cluster.rpc.Call`.

    One that outlives its connection is bound to another when its client attaches to it: what the
    earlier one says of it from then on is of no stream.
    """

    __slots__ = (
        "_guest",
        "_has_changed",
        "_last",
        "_left",
        "_stream",
        "deadline",
        "ending",
        "epoch",
        "is_known",
        "kept",
        "phase",
        "task",
        "tokens_emitted",
    )

    def __init__(self, guest: Guest, stream: int, deadline: float | None) -> None:
        self._guest: Guest | None = guest  # who hears it; None: nobody is there
        self._stream = stream
        self._last = guest, stream  # who heard it last, though he be gone
        self._left = WINDOW_BYTES
        self._has_changed: asyncio.Event | None = None  # while it can say nothing
        self.deadline = deadline  # time.monotonic(); None is without end
        self.phase = "request"
        self.tokens_emitted = 0
        self.task: asyncio.Task[None] | None = None
        self.kept: KeptMessages | None = None  # None: it ends with its connection
        self.ending: bytes | None = None  # what it ended with
        self.epoch = 0  # rises with who attaches
        self.is_known = False  # there may be somebody who knows what to ask for

    @property
    def remaining_s(self) -> float | None:
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    @property
    def has_ended(self) -> bool:
        return self.ending is not None

    def outlive(self, key: AnswerKey, *, num_emitted: Sequence[int]) -> bool:
        """Has it outlive its connection from its first message on, or at once where some tokens of
        its choices were emitted before: then its key is known. Returns whether it does: who is
        connected must know that."""
        guest = self._guest
        if guest is None or not guest.is_outlived:
            return False
        self.kept, self.is_known = KeptMessages(num_emitted), any(num_emitted)
        guest.keep(key, self)
        return True

    async def send(self, message: Message | bytes) -> None:
        """Waits while the peer does not read, or is away. Raises PeerError where nobody is left."""
        while (guest := self._guest) is None or self._left <= 0 or not guest.hears:
            if guest is not None and guest.connection.is_lost:
                break
            self._has_changed = asyncio.Event()
            await self._has_changed.wait()
        if guest is None or guest.connection.is_lost:
            raise PeerError("The caller has ended the call.")
        data = encoded(message)
        num_bytes = cost(data)
        if self.kept is not None:
            self.kept.add(data, num_bytes)
            self.is_known = True
        self._write(data, num_bytes)

    def _write(self, data: bytes, num_bytes: int) -> None:
        assert self._guest is not None
        self._left -= num_bytes
        for each in in_parts(data, FrameKind.MESSAGE, FrameKind.PART, self._stream):
            self._guest.connection.write_frames(each)

    def credit(self, num_bytes: int) -> None:
        self._left = min(WINDOW_BYTES, self._left + num_bytes)
        self.wake()

    def wake(self) -> None:
        """Something changed that it may have waited for."""
        if self._has_changed is not None:
            self._has_changed.set()

    def end(self, failure: PenstockError | None) -> None:
        self.ending = b"" if failure is None else status_bytes(failure)
        if self._guest is not None:
            self._guest.connection.write(FrameKind.END, self._stream, self.ending)

    # -- who hears it ------------------------------------------------------------------------

    def detach(self) -> None:
        """Its connection is lost."""
        self._guest = None

    def attach(self, guest: Guest, stream: int, messages: list[bytes]) -> None:
        """Goes on there, after these messages: bounded as they are, they need no credit."""
        self._tell_moved()
        self._guest, self._stream, self._left = guest, stream, WINDOW_BYTES
        self._last = guest, stream
        for data in messages:
            self._write(data, cost(data))
        if self.ending is None:
            guest.calls[stream] = self
        else:
            guest.connection.write(FrameKind.END, stream, self.ending)
            self._guest = None
        self.wake()

    def _tell_moved(self) -> None:
        """To whoever had it last: what he was sent and has not read he need not keep, though all
        of it was said to him. So one answer fills the memory of routers once."""
        guest, stream = self._last
        guest.calls.pop(stream, None)
        moved = AnswerMoved("The client goes on with this answer by another call.")
        guest.connection.write(FrameKind.END, stream, status_bytes(moved))

    def leave(self, failure: PenstockError | None = None) -> None:
        """Has nothing to do with its stream any more, which ends with the failure."""
        if (guest := self._guest) is None:
            return
        self._guest = None
        if guest.calls.pop(self._stream, None) is not None and failure is not None:
            guest.connection.write(FrameKind.END, self._stream, status_bytes(failure))

    def give_up(self) -> None:
        """Nobody came back for it."""
        self.leave(WorkerLost("Nothing was heard of who asked for this answer: it was given up."))
        if self.task is not None:
            self.task.cancel()
