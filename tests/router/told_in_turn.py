"""Routers that tell decode workers to drain at once, and what they say to these delivered one by
one, in an order that a test chooses. The orders and the drains are real, there is no socket."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from cluster.errors import DeadlineExceeded, PenstockError
from cluster.open_calls import OpenCalls
from cluster.types import LoadReport, Role, WorkerId
from penstock.v1 import worker_pb2
from router.drains import Drains
from router.pool import Pool
from tests.cluster.cluster_samples import member
from worker.drain import Drain
from worker.orders import Orders

Choose = Callable[[int], int]  # of so many one


class _Said(NamedTuple):
    worker: WorkerId
    method: str
    request: Any
    answer: asyncio.Future[Any]


class ToldInTurn:
    """Is the links of all its routers, which think that all workers serve."""

    def __init__(self, num_workers: int) -> None:
        self._pool = Pool()
        self._drains: dict[WorkerId, Drain] = {}
        self._orders: dict[WorkerId, Orders] = {}
        self._waiting: list[_Said] = []
        for number in range(num_workers):
            self._add(WorkerId(f"d{number}"))

    @property
    def serving(self) -> list[WorkerId]:
        return [name for name, drain in self._drains.items() if drain.report() is None]

    async def tell_all(self, choose: Choose, *, is_answer_lost: Callable[[], bool]) -> list[str]:
        """Has each worker told by a router of its own. Returns why some were not, "" for others."""
        tasks = [asyncio.create_task(self._tell(name)) for name in self._drains]
        while open_tasks := [task for task in tasks if not task.done()]:
            await asyncio.sleep(0)
            if len(self._waiting) == len(open_tasks):
                await self._deliver(choose, is_answer_lost)
        return [task.result() for task in tasks]

    async def _tell(self, name: WorkerId) -> str:
        links: Any = self
        drains = Drains(self._pool, links, lambda: 0.0)
        try:
            await drains.drain(worker_pb2.DrainRequest(worker_id=name, limit_seconds=1), links)
        except PenstockError as error:
            return error.message
        return ""

    async def _deliver(self, choose: Choose, is_answer_lost: Callable[[], bool]) -> None:
        said = self._waiting.pop(choose(len(self._waiting)))
        call: Any = None
        try:
            answer = await self._orders[said.worker].rpcs[said.method](said.request, call)
        except PenstockError as error:
            said.answer.set_exception(error)
        else:
            if is_answer_lost():
                said.answer.set_exception(DeadlineExceeded(said.method))
            else:
                said.answer.set_result(answer)
        await asyncio.sleep(0)  # its router goes on before we look again
        await asyncio.sleep(0)

    def get(self, worker: WorkerId) -> Any:
        return _Link(worker, self._waiting)

    def _add(self, name: WorkerId) -> None:
        there = member(name)
        self._pool.join(there)
        self._pool.report(name, there.worker.incarnation, LoadReport(num_free_blocks=9), 0.0)
        drain = self._drains[name] = Drain(OpenCalls())

        def is_serving() -> bool:
            return drain.report() is None

        self._orders[name] = Orders(
            there.worker, Role.DECODE, drain, drain_s=1.0, is_serving=is_serving
        )


class _Link:
    """Is its own channel."""

    def __init__(self, worker: WorkerId, waiting: list[_Said]) -> None:
        self._worker = worker
        self._waiting = waiting

    @property
    def channel(self) -> "_Link":
        return self

    async def unary(self, service: str, method: str, request: Any, *, timeout_s: float) -> Any:
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append(_Said(self._worker, method, request, answer))
        return await answer


def all_orders() -> Iterator[Choose]:
    """Yields a choice for each order there is: ask until it ends, one run for each."""
    taken: list[int] = []
    while True:
        widths: list[int] = []

        def choose(num: int, widths: list[int] = widths) -> int:
            if len(widths) == len(taken):
                taken.append(0)
            widths.append(num)
            return taken[len(widths) - 1]

        yield choose
        while taken and taken[-1] + 1 >= widths[len(taken) - 1]:
            taken.pop()
        if not taken:
            return
        taken[-1] += 1
