"""One prefill worker put together, from start to drained."""

import asyncio
from dataclasses import replace

from cluster.cost import StepCost
from cluster.events import EventLog
from cluster.health import ProgressMonitor
from cluster.process import Ready, print_ready
from cluster.rpc import UNBOUNDED, service_handlers
from cluster.secrets import Secrets
from cluster.types import LoadReport, Member
from cluster.watch import WatchFeed
from cluster.worker_process import WorkerProcess, serve
from engine.batcher import Batcher, Budget
from engine.block_pool import BlockPool
from engine.step_loop import StepLoop
from engine.thread import EngineThread, ForwardEngine
from kv_transfer.pairs import Pairs
from prefill_worker.config import PrefillWorkerConfig
from prefill_worker.scheduler import PrefillScheduler
from prefill_worker.service import PrefillService


class PrefillWorker:
    """Owns the parts of one prefill worker. Needs no running event loop until `serve`."""

    def __init__(
        self,
        config: PrefillWorkerConfig,
        *,
        member: Member,
        secrets: Secrets,
        engine: ForwardEngine,
        pairs: Pairs,
        cost: StepCost,
    ) -> None:
        self.config = config
        self.member = member
        self.secrets = secrets
        self.pairs = pairs

        self.monitor = ProgressMonitor()
        self.log = EventLog(member.worker.incarnation)
        self.pool = BlockPool(config.num_blocks, config.block_size, config.hash_grain)
        self.thread = EngineThread(engine)
        batcher = _batcher(config, self.pool, cost)
        self.scheduler = PrefillScheduler(batcher, cost, self._changed)
        self.loop = StepLoop(self.scheduler, self.thread, self.monitor)

    async def serve(self, drain: asyncio.Event, ready: Ready = print_ready) -> None:
        """Until `drain` is set and what is in progress has ended."""
        feed = WatchFeed(self.log, self._load)
        self.service = PrefillService(
            self.config,
            self.member.worker,
            self.secrets,
            self.scheduler,
            self.pairs,
            feed,
            is_making_progress=lambda: not self.monitor.is_stale(),
        )
        await serve(self._process(feed), drain, ready)
        self.thread.close()
        self.pairs.close()

    def _process(self, feed: WatchFeed) -> WorkerProcess:
        service = self.service
        handlers = service_handlers(
            "penstock.v1.Prefill",
            {"Prefill": service.prefill, "Fence": service.fence},
            token=self.secrets.cluster_token,
            deadlines=UNBOUNDED,  # the receiver's call ends with its request's deadline
        )
        return WorkerProcess(
            member=self.member,
            secrets=self.secrets,
            router=self.config.router,
            services=[handlers],
            feed=feed,
            run=[self.loop.run()],
            is_serving=self._is_serving,
            open_calls=service.open_calls,
            begin_drain=service.begin_drain,
            check=self.check,
            drain_s=self.config.drain_s,
        )

    def check(self) -> None:
        """Raises AssertionError unless every block is accounted for."""
        self.scheduler.check()

    def _changed(self) -> None:
        """Something was freed, stored or added: tell the routers, and see what can run."""
        if (change := self.pool.take_changes()) is not None:
            self.log.append(change)
        self.loop.wake()

    def _is_serving(self) -> bool:
        return not self.service.is_draining and not self.monitor.is_stale()

    def _load(self) -> LoadReport:
        return replace(
            self.scheduler.load(),
            is_serving=self._is_serving(),
            is_draining=self.service.is_draining,
            step_age_s=self.monitor.step_age_s,
            counters=self.scheduler.counters(),
        )


def _batcher(config: PrefillWorkerConfig, pool: BlockPool, cost: StepCost) -> Batcher:
    budget = Budget(
        max_sequences=config.max_sequences,
        max_tokens=config.max_batch_tokens,
        chunk_s=config.chunk_s,
    )
    return Batcher(
        pool,
        budget,
        prefill_cost=lambda: cost.prefill,
        decodes=False,
        reserve_blocks=int(config.num_blocks * config.watermark),
    )
