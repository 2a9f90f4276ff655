"""One thread for work that moves only while it is polled.

Work is a generator that yields whenever it has to wait. What is in one lane runs in order; lanes
run side by side, so that one that stands still holds up no other.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable
from concurrent.futures import Future
from typing import Any, TypeVar

from cluster.errors import TransferFailed
from kv_transfer.transport import WriteRefused

T = TypeVar("T")
Steps = Generator[None, None, T]

EAGER_ROUNDS = 4  # a short write is over before a nap would be
NAP_S = 50e-6  # then it grows: on two cores a spin starves whoever should answer
LONGEST_NAP_S = 200e-6
CLOSE_S = 1.0  # for what is in flight when the loop is closed


class _Job:
    __slots__ = ("_steps", "future", "has_begun")

    def __init__(self, steps: Steps[Any]) -> None:
        self.future: Future[Any] = Future()
        self._steps = steps
        self.has_begun = False

    def advance(self) -> bool:
        """Advances it; tells whether it is over."""
        return not self._begin() or self._resume(lambda: next(self._steps))

    def fail(self, error: Exception) -> None:
        if self._begin() and not self._resume(lambda: self._steps.throw(error)):
            self._steps.close()
            self.future.set_exception(error)

    def _begin(self) -> bool:
        """Tells whether it may run; from here on it cannot be cancelled."""
        if not self.has_begun:
            self.has_begun = self.future.set_running_or_notify_cancel()
        return self.has_begun

    def _resume(self, resume: Callable[[], None]) -> bool:
        try:
            resume()
        except StopIteration as over:
            self.future.set_result(over.value)
        except Exception as error:  # the work's own; whoever waits for the future learns it
            self.future.set_exception(error)
        return self.future.done()


class ProgressLoop:
    __slots__ = (
        "_idle_s",
        "_inbox",
        "_is_closed",
        "_is_running",
        "_lanes",
        "_lock",
        "_progress",
        "_thread",
    )

    def __init__(
        self, name: str, *, progress: Callable[[], None], idle_s: Callable[[], float]
    ) -> None:
        """`progress` is called between steps, and every `idle_s()` seconds while there is no work:
        peers may need ours."""
        self._progress = progress
        self._idle_s = idle_s
        self._lanes: dict[Hashable, deque[_Job]] = {}  # of the thread
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()  # nothing comes into the inbox once it is closed
        self._is_closed = False
        self._is_running = True  # of the thread
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, lane: Hashable, steps: Steps[T]) -> "Future[T]":
        """Fails with WriteRefused where the loop is closed. From any thread."""
        job = _Job(steps)
        if not self._tell(lambda: self._lanes.setdefault(lane, deque()).append(job)):
            job.fail(WriteRefused("The transport is closed."))
        return job.future

    def fail(self, lane: Hashable, error: Exception) -> None:
        """Everything in the lane, in flight or not. From any thread."""
        self._tell(lambda: self._fail(lane, error))

    def close(self) -> None:
        """Cancels what has not begun; gives the rest a moment, then fails it."""
        with self._lock:
            if not self._is_closed:
                self._inbox.put(self._stop)
                self._is_closed = True
        self._thread.join()

    def _tell(self, what: Callable[[], None]) -> bool:
        with self._lock:
            if not self._is_closed:
                self._inbox.put(what)
            return not self._is_closed

    def _run(self) -> None:
        num_still = 0  # rounds in which nothing ended
        while self._is_running:
            self._take_in(self._wait_s(num_still))
            num_still = 0 if self._step_each() else num_still + 1
        deadline = time.monotonic() + CLOSE_S
        while self._lanes and time.monotonic() < deadline:
            self._step_each()
            time.sleep(NAP_S)
        for lane in list(self._lanes):
            self._fail(lane, TransferFailed("The transport was closed with this in flight."))

    def _wait_s(self, num_still: int) -> float:
        if not self._lanes:
            return self._idle_s()
        if num_still < EAGER_ROUNDS:
            return 0.0
        return min(NAP_S * (num_still - EAGER_ROUNDS + 1), LONGEST_NAP_S)

    def _take_in(self, wait_s: float) -> None:
        """Whatever has come, or the first that comes within this time."""
        try:
            tell = self._inbox.get(block=wait_s > 0, timeout=wait_s or None)
            while True:
                tell()
                tell = self._inbox.get_nowait()
        except queue.Empty:
            pass

    def _step_each(self) -> bool:
        """Steps each; tells whether anything ended."""
        self._progress()
        over = [lane for lane, jobs in self._lanes.items() if jobs[0].advance()]
        for lane in over:
            self._lanes[lane].popleft()
            if not self._lanes[lane]:
                del self._lanes[lane]
        return bool(over)

    def _fail(self, lane: Hashable, error: Exception) -> None:
        for job in self._lanes.pop(lane, ()):
            job.fail(error)

    def _stop(self) -> None:
        """The last thing that the inbox tells: leaves in the lanes only what is in flight."""
        self._is_running = False
        for lane, jobs in list(self._lanes.items()):
            waiting = list(jobs)
            if waiting[0].has_begun:
                self._lanes[lane] = deque([waiting.pop(0)])
            else:
                del self._lanes[lane]
            for job in waiting:
                job.future.cancel()
