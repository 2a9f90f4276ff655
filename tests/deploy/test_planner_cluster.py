"""The planner's loop beside a real router, over the wire, with workers that are placed and released
as it says: they grow under load and shrink, go to nothing and come back, and no request fails."""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from cluster.secrets import load_secrets
from cluster.store import MemoryStore
from cluster.types import DecodeCost, LoadReport, PrefillCost, Role
from deploy.placement import Wanted
from deploy.planner.lease import Lease
from deploy.planner.loop import PlannerLoop
from deploy.planner.on_ray import Placements
from deploy.planner.record import LEASE_KEY, read_record
from deploy.planner.roster import PlannedPool
from deploy.planner.routers import RouterConnections
from deploy.planner.settings import PlannerSettings
from penstock.v1 import inference_pb2 as pb
from tests.deploy.planned_cluster import planned_pool
from tests.router.checkpoint import write_checkpoint
from tests.router.cluster_of_fakes import Cluster
from tests.router.fake_worker import FakeWorker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# The least that a planner takes.
HASTY = PlannerSettings(
    interval_s=0.5, window_s=10.0, hold_s=0.0, calm_s=0.0, start_s=120.0, leave_s=60.0
)
PROMPT = list(range(1, 201)) * 2
# 0.2 s a prompt, by their own word.
LOAD = LoadReport(
    num_free_blocks=1000,
    num_blocks=1000,
    prefill_cost=PrefillCost(c0=0.001, c1=5e-4),
    decode_cost=DecodeCost(d0=0.01),
)
WITHIN_S = 200.0  # the machine may be busy


class Workers:
    """The machines of a planner: workers in this process, at the router."""

    def __init__(self, cluster: Cluster, pools: Sequence[PlannedPool]) -> None:
        self._cluster = cluster
        self._roles = {name: pool.role for pool in pools for name in pool.workers}
        self._loop = asyncio.get_running_loop()
        self.running: dict[str, FakeWorker] = {}
        self.most: tuple[int, int] = (0, 0)
        self.killed: list[str] = []  # with something in progress

    @property
    def sizes(self) -> tuple[int, int]:
        roles = [self._roles[name] for name in self.running]
        return roles.count(Role.PREFILL), roles.count(Role.DECODE)

    def look(self) -> Placements:
        return Placements(names=frozenset(self.running), routers=(self._cluster.address,))

    def place(self, wanted: Sequence[Wanted]) -> list[str]:
        for each in wanted:
            asyncio.run_coroutine_threadsafe(self.start(each.name), self._loop).result()
        return []

    def release(self, names: Collection[str]) -> list[str]:
        for name in names:
            asyncio.run_coroutine_threadsafe(self.end(name), self._loop).result()
        return []

    async def start(self, name: str) -> None:
        worker = self._cluster.worker(name, self._roles[name], load=LOAD)
        self.running[name] = await worker.__aenter__()
        self.most = max(self.most, self.sizes)

    async def end(self, name: str) -> None:
        worker = self.running.pop(name)
        if worker.num_open:
            self.killed.append(name)
        await worker.heartbeat.leave()
        await worker.__aexit__(None, None, None)


@asynccontextmanager
async def planned(folder: Path, *pools: PlannedPool) -> AsyncIterator[tuple[Cluster, Workers]]:
    write_checkpoint(folder)
    async with (
        Cluster(folder, folder, return_s=30.0) as cluster,
        AsyncExitStack() as stack,
    ):
        workers, store = Workers(cluster, pools), MemoryStore()
        secrets = load_secrets(cluster.router.config.secrets_file)
        routers = await stack.enter_async_context(RouterConnections(secrets))
        loop = PlannerLoop(
            name="planner",
            pools=pools,
            settings=HASTY,
            lease=Lease(store, LEASE_KEY, "planner"),
            store=store,
            machines=workers,
            routers=routers,
        )
        end = asyncio.Event()
        planning = asyncio.create_task(loop.run(end))
        try:
            yield cluster, workers
        finally:
            record = await read_record(store)
            print(*(each.text for each in record.past) if record else (), sep="\n")
            end.set()
            await planning
            for name in list(workers.running):
                await workers.end(name)


async def until(condition: object) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():  # type: ignore[operator]  # noqa: ASYNC110 - seen from outside
            await asyncio.sleep(0.05)


async def ask(cluster: Cluster, number: int = 0) -> None:
    """Fails where the request does."""
    ids = [number % 200 + 1, *PROMPT]
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids))
    request.stop.max_tokens = 3
    answer = await cluster.generate(request, timeout_s=WITHIN_S)
    assert answer.token_ids == ids[:3]


@asynccontextmanager
async def load(cluster: Cluster, num_clients: int, pause_s: float) -> AsyncIterator[None]:
    """Each asks again and again."""
    over = asyncio.Event()

    async def client(number: int) -> None:
        while not over.is_set():
            await ask(cluster, number)
            number += num_clients
            await asyncio.wait([asyncio.create_task(over.wait())], timeout=pause_s)

    async with asyncio.TaskGroup() as tasks:
        for number in range(num_clients):
            tasks.create_task(client(number))
        try:
            yield
        finally:
            over.set()


async def test_they_grow_under_load_and_shrink_and_nothing_fails(tmp_path: Path) -> None:
    pools = (
        planned_pool("prompts", Role.PREFILL, 1, 2),
        planned_pool("answers", Role.DECODE, 1, 2),
    )
    async with planned(tmp_path, *pools) as (cluster, workers):
        await until(lambda: workers.sizes == (1, 1))  # the planner's own first act
        await cluster.serving(*workers.running.values())
        async with load(cluster, 4, pause_s=0.2):
            await until(lambda: workers.sizes == (2, 2))
        async with load(cluster, 1, pause_s=1.0):
            await until(lambda: workers.sizes == (1, 1))
            await ask(cluster)
        assert workers.killed == []
        assert workers.most == (2, 2)


@pytest.mark.prove
async def test_to_nothing_and_back_for_a_request_that_waits(tmp_path: Path) -> None:
    async with planned(tmp_path, planned_pool("answers", Role.DECODE, 0, 1)) as (cluster, workers):
        for _ in range(2):
            await until(lambda: cluster.router.is_serving)  # though nobody is there
            await ask(cluster)
            assert workers.sizes == (0, 1)
            await until(lambda: workers.sizes == (0, 0))
        assert workers.killed == []
