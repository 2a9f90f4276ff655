"""The way to one peer: a thread that sends our writes over a few streams and hears the answers.

A thread a peer, so that one that is frozen or far away holds up nobody else's writes. It alone
touches its streams (TLS allows no other), and waits in one place: for room, for answers, for
writes.

Writes share the first stream, one after the other, and so keep their order. One that is large is
dealt to all streams, frame by frame: it waits for those before it, and those behind it for it,
where they go to the same stretch of the pool.
"""

import logging
import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from selectors import EVENT_READ, EVENT_WRITE

import numpy as np
import xxhash

from cluster.errors import TransferFailed
from cluster.lateness import Limit
from kv_transfer.geometry import SpanPairs
from kv_transfer.tcp.frame import FrameAnswer, Framing, cut, decode_answer, encode_head, views_of
from kv_transfer.tcp.wire import Views, Wire
from kv_transfer.transfer import RemoteProtocolError
from kv_transfer.transport import Landed, WriteRefused

STALL_S = 5.0  # without an answer to any frame, after which the streams are dropped
SPLIT_BYTES = 4 << 20  # a write from here on uses all streams
ANSWERS_BYTES = 4096  # taken at once

logger = logging.getLogger(__name__)


class TcpWrite:
    """Belongs to the link's thread, but for its future."""

    __slots__ = (
        "_began_at",
        "_epoch",
        "_frames",
        "_framing",
        "_hasher",
        "_is_refused",
        "_may_have_landed",
        "_may_start",
        "_num_left",
        "_num_unanswered",
        "_pairs",
        "_undigested",
        "future",
        "num_bytes",
    )

    _frames: Iterator[SpanPairs]

    def __init__(
        self,
        pairs: SpanPairs,
        *,
        epoch: int,
        digest: bool,
        may_start: Callable[[], bool],
        framing: Framing | None = None,
    ) -> None:
        self.future: Future[Landed] = Future()
        self.num_bytes = pairs.num_bytes
        self._pairs = pairs
        self._epoch = epoch
        self._framing = framing or Framing()
        self._hasher = xxhash.xxh3_64() if digest else None
        self._may_start = may_start
        self._num_left = self.num_bytes  # that no frame carries yet
        self._num_unanswered = 0  # frames
        self._undigested: list[memoryview] = []
        self._is_refused = False
        self._may_have_landed = False  # a byte of it
        self._began_at = 0.0

    @property
    def has_frames(self) -> bool:
        return self._num_left > 0

    @property
    def splits(self) -> bool:
        """Tells whether several streams may carry it."""
        return self._framing.splits

    @property
    def is_over(self) -> bool:
        return not self._num_left and not self._num_unanswered

    def overlaps(self, other: "TcpWrite") -> bool:
        """Tells whether both write into one stretch of the peer's pool."""
        start, stop = self._stretch()
        other_start, other_stop = other._stretch()
        return start < other_stop and other_start < stop

    def begin(self, source_bytes: int, destination_bytes: int) -> bool:
        """Right before its first byte would move; if it may not, its future is done."""
        if not self.future.set_running_or_notify_cancel():
            return False
        try:
            if not self._pairs.fits(source_bytes, destination_bytes):
                raise ValueError(
                    f"A span lies outside its pool ({source_bytes} and {destination_bytes} bytes)."
                )
            if not self._may_start():
                raise WriteRefused("The grant was stopped or lapsed before the write started.")
        except Exception as error:  # whatever the caller's `may_start` raises is the caller's
            self.future.set_exception(error)
            return False
        self._began_at = time.perf_counter()
        self._frames = cut(self._pairs, self._framing.frame_bytes)
        return True

    def next_frame(self, memory: memoryview) -> Views:
        """The one before is digested by now."""
        pairs = next(self._frames)
        self._num_left -= pairs.num_bytes
        self._num_unanswered += 1
        views = views_of(memory, pairs.source, pairs.sizes)
        self._undigested = views
        if (conversion := pairs.conversion) is not None:
            wire = conversion.encode(np.frombuffer(b"".join(views), dtype=np.uint8))
            views = [wire.data]
            self._undigested = [conversion.decode(wire).data]  # what will lie there
        return Views([memoryview(encode_head(self._epoch, pairs)), *views])

    def digest_sent(self) -> None:
        """Hashes the last frame: after it was sent, as its bytes are still in the cache and the
        receiver is busy with them."""
        if self._hasher is not None:
            for view in self._undigested:
                self._hasher.update(view)
        self._undigested = []

    def answered(self, answer: FrameAnswer) -> None:
        """A frame was."""
        self._num_unanswered -= 1
        self._may_have_landed |= answer is not FrameAnswer.REFUSED
        if answer is not FrameAnswer.LANDED:
            self._is_refused = True
            self._num_left = 0  # no further frame

    def settle(self, idle_until: float) -> None:
        """All frames were answered; `idle_until` is when the write before it was over."""
        if self._is_refused:
            self.future.set_exception(self._refusal())
            return
        self.digest_sent()  # the last frame, if another write has begun since
        digest = None if self._hasher is None else int(self._hasher.intdigest())
        seconds = time.perf_counter() - max(self._began_at, idle_until)
        self.future.set_result(Landed(num_bytes=self.num_bytes, seconds=seconds, digest=digest))

    def _stretch(self) -> tuple[int, int]:
        pairs = self._pairs
        if not len(pairs):
            return 0, 0
        ends = pairs.destination + pairs.destination_sizes
        return int(pairs.destination.min()), int(ends.max())

    def _refusal(self) -> TransferFailed:
        if self._may_have_landed:
            return TransferFailed("The receiver revoked the epoch while it was being written.")
        return WriteRefused("The receiver admits no such write: its epoch is over, or not lent so.")


class _Stream:
    __slots__ = ("unanswered", "unsent", "wire")

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.unsent = Views(())
        self.unanswered: deque[TcpWrite] = deque()  # one entry a frame


class TcpLink:
    """Owns its streams. `close` from any thread; a write that fails says so in its future."""

    def __init__(
        self,
        name: str,
        dial: Callable[[], Sequence[Wire]],
        source: memoryview,
        destination_bytes: int,
    ) -> None:
        """`dial` is called on the thread: now, and again by a write after the streams were lost."""
        self.is_up: Future[None] = Future()  # or why not, as TransferFailed
        self._name = name
        self._dial = dial
        self._source = source
        self._destination_bytes = destination_bytes
        self._streams: list[_Stream] = []
        self._queue: deque[TcpWrite] = deque()
        self._in_flight: deque[TcpWrite] = deque()  # begun; the last may have frames to send
        # Since an answer came, or the first frame began to be owed one.
        self._patience = Limit(STALL_S)
        self._idle_until = 0.0
        self._closed_by: TransferFailed | None = None
        self._lock = threading.Lock()  # of `_queue`'s end, `_closed_by` and the bell
        self._selector = selectors.DefaultSelector()
        self._bell = os.eventfd(0)
        self._selector.register(self._bell, EVENT_READ, partial(os.eventfd_read, self._bell))
        self._thread = threading.Thread(target=self._run, name="kv-tcp-link", daemon=True)
        self._thread.start()

    def write(self, write: TcpWrite) -> "Future[Landed]":
        with self._lock:
            if self._closed_by is None:
                self._queue.append(write)
                os.eventfd_write(self._bell, 1)
            else:
                write.future.set_exception(WriteRefused(str(self._closed_by)))
        return write.future

    def close(self, reason: str) -> None:
        """Waits for nobody: what is in flight fails a moment later."""
        with self._lock:
            if self._closed_by is None:
                self._closed_by = TransferFailed(reason)
                os.eventfd_write(self._bell, 1)

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        if self.is_up.set_running_or_notify_cancel():
            self._open_first()
        while self._closed_by is None:
            try:
                if self._streams or not self._queue:  # else a write waits to be dialled for
                    self._wait()
                self._send()
            except (OSError, TransferFailed) as error:
                self._lose(str(error))
            except Exception:  # the peer's writes must not wait for ever for a bug
                logger.exception("The KV link to '%s' is dropped by a bug.", self._name)
                self._lose("a bug, which is in our log")
        self._end()

    def _open_first(self) -> None:
        try:
            self._open()
        except Exception as error:
            self.close(str(error))
            self.is_up.set_exception(error)
        else:
            self.is_up.set_result(None)

    def _open(self) -> None:
        for wire in self._dial():
            stream = _Stream(wire)
            self._streams.append(stream)
            self._selector.register(wire, EVENT_READ, partial(self._hear, stream))

    def _wait(self) -> None:
        """Waits for answers, room, writes; raises TransferFailed when none come for too long."""
        for key, events in self._selector.select(self._pause_s()):
            if events & EVENT_READ:
                key.data()

    def _pause_s(self) -> float | None:
        try:
            return self._patience.pause_s() if self._in_flight else None
        except TimeoutError:
            text = f"it took no frame for {STALL_S:.0f} s: frozen, or cut off"
            raise TransferFailed(text) from None

    def _hear(self, stream: _Stream) -> None:
        answers = bytearray(ANSWERS_BYTES)
        while True:
            num_bytes = stream.wire.receive([memoryview(answers)])
            for byte in answers[:num_bytes]:
                if not stream.unanswered:
                    raise RemoteProtocolError("it answered a frame that we had not sent")
                stream.unanswered.popleft().answered(decode_answer(byte))
            if not stream.wire.has_more:
                break
        self._patience = Limit(STALL_S)
        self._settle()

    def _settle(self) -> None:
        while self._in_flight and self._in_flight[0].is_over:
            self._in_flight.popleft().settle(self._idle_until)
            self._idle_until = time.perf_counter()

    def _send(self) -> None:
        """All that there is room for now."""
        if self._queue and not self._streams:
            self._open_again()
        for stream in self._streams:
            while stream.unsent.num_bytes or self._load(stream):
                num_bytes = stream.wire.send(stream.unsent.some())
                if not num_bytes:
                    break
                stream.unsent.advance(num_bytes)
            self._watch(stream)
        if self._in_flight:
            self._in_flight[-1].digest_sent()

    def _watch(self, stream: _Stream) -> None:
        events = EVENT_READ | EVENT_WRITE if stream.unsent.num_bytes else EVENT_READ
        key = self._selector.get_key(stream.wire)
        if key.events != events:
            self._selector.modify(stream.wire, events, key.data)

    def _load(self, stream: _Stream) -> bool:
        """Gives the stream its next frame, if there is one for it."""
        write = self._in_flight[-1] if self._in_flight else None
        if write is not None:
            write.digest_sent()
        if write is None or not write.has_frames:
            write = self._begin_next(stream)
        if write is None or not self._may_carry(stream, write):
            return False
        stream.unsent = write.next_frame(self._source)
        stream.unanswered.append(write)
        return True

    def _begin_next(self, stream: _Stream) -> TcpWrite | None:
        while self._queue and self._may_begin(self._queue[0], stream):
            write = self._queue.popleft()
            if not write.begin(len(self._source), self._destination_bytes):
                continue
            if not self._in_flight:
                self._patience = Limit(STALL_S)
            self._in_flight.append(write)
            if write.has_frames:
                return write
            self._settle()
        return None

    def _may_begin(self, write: TcpWrite, stream: _Stream) -> bool:
        """Tells whether it may: not where one could overtake another on another stream."""
        return self._may_carry(stream, write) and not any(
            (self._is_split(write) or self._is_split(other)) and write.overlaps(other)
            for other in self._in_flight
        )

    def _may_carry(self, stream: _Stream, write: TcpWrite) -> bool:
        return stream is self._streams[0] or self._is_split(write)

    def _is_split(self, write: TcpWrite) -> bool:
        return len(self._streams) > 1 and write.splits and write.num_bytes >= SPLIT_BYTES

    def _open_again(self) -> None:
        """Once; what was queued until now fails with it."""
        try:
            self._open()
        except TransferFailed as error:
            self._refuse_queued(error)

    def _lose(self, reason: str) -> None:
        """The frames in flight can never land: a stream's receiver drops what is incomplete."""
        for stream in self._streams:
            self._selector.unregister(stream.wire)
            stream.wire.close()
        self._streams.clear()
        error = TransferFailed(f"The KV streams to '{self._name}' are lost: {reason}.")
        while self._in_flight:
            self._in_flight.popleft().future.set_exception(error)

    def _refuse_queued(self, error: TransferFailed) -> None:
        for _ in range(len(self._queue)):  # not those that their callers submit meanwhile
            future = self._queue.popleft().future
            if future.set_running_or_notify_cancel():
                future.set_exception(WriteRefused(str(error)))

    def _end(self) -> None:
        error = self._closed_by or TransferFailed("The transport is closed.")
        self._lose(str(error))
        self._refuse_queued(error)
        with self._lock:  # whoever closed us may not have rung yet
            self._selector.close()
            os.close(self._bell)
