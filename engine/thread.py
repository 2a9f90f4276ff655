"""The engine's own thread. The event loop and it meet at two queues; neither polls.

Knows no torch: whatever has a `forward` can run here.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

from engine.batch import Batch, RowResult

LayerDone = Callable[[int], None]


class ForwardEngine(Protocol):
    """Runs a batch to its end, on any one thread."""

    def forward(self, batch: Batch, layer_done: LayerDone | None = None) -> list[RowResult]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    rows: list[RowResult]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    batch: Batch
    layer_done: LayerDone | None
    future: asyncio.Future[StepResult]
    loop: asyncio.AbstractEventLoop


class EngineThread:
    """Owns the thread; `close` ends it after the step that runs."""

    def __init__(self, engine: ForwardEngine) -> None:
        self._engine = engine
        self._orders: SimpleQueue[_Order | None] = SimpleQueue()
        # A daemon: a wedged forward must not keep a draining process alive.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def forward(self, batch: Batch, layer_done: LayerDone | None = None) -> StepResult:
        """Runs one batch there; raises what the engine raised."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[StepResult] = loop.create_future()
        self._orders.put(_Order(batch=batch, layer_done=layer_done, future=future, loop=loop))
        return await future

    def close(self) -> None:
        self._orders.put(None)

    async def has_ended(self, limit_s: float) -> bool:
        """Tells, after `close`, whether within this time the engine may run on another thread."""
        await asyncio.to_thread(self._thread.join, limit_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            started = time.perf_counter()
            error: BaseException | None = None
            rows: list[RowResult] = []
            try:
                rows = self._engine.forward(order.batch, order.layer_done)
            except BaseException as raised:  # the thread's outermost line: it must live on
                error = raised
            result = StepResult(rows=rows, seconds=time.perf_counter() - started)
            try:
                order.loop.call_soon_threadsafe(_settle, order.future, result, error)
            except RuntimeError:
                return  # the event loop is gone, and with it whoever waits


def _settle(
    future: asyncio.Future[StepResult], result: StepResult, error: BaseException | None
) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
