"""The loop of a worker: form a batch, run it, take in what it gave. One step at a time.

The scheduler is plain synchronous code on the event loop; only the forward is elsewhere.
"""

import asyncio
import logging
import time
from typing import Protocol

from engine.batch import Batch
from engine.thread import EngineThread, LayerDone, StepResult

logger = logging.getLogger(__name__)


class StepScheduler(Protocol):
    """Decides what runs. None of its methods wait."""

    def next_batch(self) -> Batch | None:
        """The next step, or None: nothing can run until `wake`."""

    def predicted_s(self, batch: Batch) -> float: ...

    def complete(self, batch: Batch, result: StepResult) -> None: ...

    def observe(self, batch: Batch, seconds: float) -> None:
        """Is told what the step took, from forming the batch to having taken in what it gave:
        requests wait for all of it, and not for the forward alone."""

    def fail(self, error: Exception) -> None:
        """The engine raised: the sequences of the batch in flight are lost."""

    def layer_done(self, batch: Batch) -> LayerDone | None:
        """Called on the engine's thread after each layer of this batch, if not None."""


class Progress(Protocol):
    """Told when a step begins and ends: a step that never ends is a wedged engine."""

    def begin_step(self, predicted_s: float) -> None: ...

    def end_step(self) -> None: ...


class StepLoop:
    """Runs a scheduler's batches until cancelled."""

    def __init__(self, scheduler: StepScheduler, thread: EngineThread, progress: Progress) -> None:
        self._scheduler = scheduler
        self._thread = thread
        self._progress = progress
        self._work = asyncio.Event()

    def wake(self) -> None:
        """Something changed that may let a batch form."""
        self._work.set()

    async def run(self) -> None:
        while True:
            begin = time.perf_counter()
            batch = self._scheduler.next_batch()
            if batch is None:
                self._work.clear()
                await self._work.wait()
            elif await self._step(batch):
                self._scheduler.observe(batch, time.perf_counter() - begin)

    async def _step(self, batch: Batch) -> bool:
        """False: the engine failed."""
        self._progress.begin_step(self._scheduler.predicted_s(batch))
        try:
            result = await self._thread.forward(batch, self._scheduler.layer_done(batch))
        except Exception as error:  # whatever an engine raises costs one batch, not the worker
            logger.exception("a step of %d sequences failed", len(batch.rows))
            self._progress.end_step()
            self._scheduler.fail(error)
            return False
        self._progress.end_step()
        self._scheduler.complete(batch, result)
        return True
