"""What a step costs is all that passes until the next can begin."""

import asyncio
from typing import Any

import pytest

from engine.batch import Batch
from engine.step_loop import StepLoop
from engine.thread import EngineThread

BATCH = Batch(rows=())


class OneBatch:
    """A scheduler with one batch; says what it was told, in order."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.ended = asyncio.Event()
        self._batches = [BATCH]

    def next_batch(self) -> Batch | None:
        if self._batches:
            return self._batches.pop()
        self.ended.set()
        return None

    def predicted_s(self, batch: Batch) -> float:
        return 0.0

    def layer_done(self, batch: Batch) -> None:
        return None

    def complete(self, batch: Batch, result: Any) -> None:
        self.told.append(("complete", result.seconds))

    def observe(self, batch: Batch, seconds: float) -> None:
        self.told.append(("observe", seconds))

    def fail(self, error: Exception) -> None:
        self.told.append(("fail", error))


class Unwatched:
    def begin_step(self, predicted_s: float) -> None: ...

    def end_step(self) -> None: ...


class Engine:
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def forward(self, batch: Batch, layer_done: Any = None) -> list[Any]:
        if self.error is not None:
            raise self.error
        return []


async def told_by(engine: Engine) -> list[Any]:
    scheduler, thread = OneBatch(), EngineThread(engine)
    running = asyncio.create_task(StepLoop(scheduler, thread, Unwatched()).run())
    await asyncio.wait_for(scheduler.ended.wait(), 10)
    running.cancel()
    thread.close()
    return scheduler.told


async def test_a_step_took_longer_than_its_forward() -> None:
    (first, forward_s), (second, seconds) = await told_by(Engine())
    assert (first, second) == ("complete", "observe")
    assert seconds > forward_s > 0.0


async def test_a_step_that_failed_teaches_nothing(caplog: pytest.LogCaptureFixture) -> None:
    error = RuntimeError("no")
    assert await told_by(Engine(error)) == [("fail", error)]
