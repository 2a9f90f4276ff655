"""One write on its way to a peer: its frames in wire order, and what became of them."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import numpy as np
import xxhash

from cluster.errors import TransferFailed
from kv_transfer.layout import SpanPairs
from kv_transfer.tcp_frame import Answer, Framing, cut, encode_head, views_of
from kv_transfer.tcp_wire import Views
from kv_transfer.transport import Landed, WriteRefused


class TcpWrite:
    """Of the link's thread, but for its future."""

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
        """Whether several streams may carry it."""
        return self._framing.splits

    @property
    def is_over(self) -> bool:
        return not self._num_left and not self._num_unanswered

    def overlaps(self, other: "TcpWrite") -> bool:
        """Whether both write into one stretch of the peer's pool."""
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

    def answered(self, answer: Answer) -> None:
        """A frame was."""
        self._num_unanswered -= 1
        self._may_have_landed |= answer is not Answer.REFUSED
        if answer is not Answer.LANDED:
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
