"""The one thread of a transport that copies bytes, and the futures it hands out."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from cluster.measurements import Measurements
from kv_transfer.copy_plan import choose_plan
from kv_transfer.geometry import SpanPairs
from kv_transfer.span_copy import Bytes, SpanCopier
from kv_transfer.transport import Landed, WriteRefused


def submit(thread: ThreadPoolExecutor, write: Callable[[], Landed]) -> "Future[Landed]":
    """A closed transport fails the future, so that its caller learns it as any failure."""
    try:
        return thread.submit(write)
    except RuntimeError:
        refused: Future[Landed] = Future()
        refused.set_exception(WriteRefused("The transport is closed."))
        return refused


class WriterThread:
    __slots__ = ("_copier", "_measurements", "_source", "_thread")

    def __init__(self, name: str, source: Bytes, measurements: Measurements | None = None) -> None:
        self._source = source
        self._copier = SpanCopier()
        self._measurements = measurements
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    def prepare(self) -> None:
        """Finds out, before the writes to a new peer, how this machine copies fastest."""
        if self._measurements is not None:
            with suppress(RuntimeError):  # closed
                self._thread.submit(self._prepare, self._measurements)

    def write(
        self,
        destination: Callable[[], Bytes],
        pairs: SpanPairs,
        *,
        digest: bool,
        may_start: Callable[[], bool],
    ) -> "Future[Landed]":
        """`destination` is called on the thread: it may map memory."""
        return submit(self._thread, lambda: self._write(destination, pairs, digest, may_start))

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, measurements: Measurements) -> None:
        self._copier = SpanCopier(choose_plan(self._source, measurements))

    def _write(
        self,
        destination: Callable[[], Bytes],
        pairs: SpanPairs,
        digest: bool,
        may_start: Callable[[], bool],
    ) -> Landed:
        pool = destination()
        if not pairs.fits(len(self._source), len(pool)):
            raise ValueError(
                f"A span lies outside its pool ({len(self._source)} and {len(pool)} bytes)."
            )
        if not may_start():
            raise WriteRefused("The grant was stopped or lapsed before the write started.")
        begin = time.perf_counter()
        value = self._copier.copy(self._source, pool, pairs, digest=digest)
        seconds = time.perf_counter() - begin
        return Landed(num_bytes=pairs.num_bytes, seconds=seconds, digest=value)
