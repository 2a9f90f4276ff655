"""One decode worker put together, from start to drained."""

import asyncio
from dataclasses import replace

from cluster.cost import StepCost
from cluster.events import EventLog
from cluster.health import ProgressMonitor
from cluster.process import Ready, print_ready
from cluster.rpc import service_handlers
from cluster.secrets import Secrets
from cluster.tokenizer import Tokenizer
from cluster.types import LoadReport, Member
from cluster.watch import WatchFeed
from cluster.worker_process import WorkerProcess, serve
from decode_worker.config import DecodeWorkerConfig
from decode_worker.hand_over import HandOvers
from decode_worker.scheduler import DecodeScheduler
from decode_worker.service import DecodeService
from engine.batcher import Batcher, Budget
from engine.block_pool import BlockPool
from engine.step_loop import StepLoop
from engine.thread import EngineThread, ForwardEngine
from kv_transfer.pairs import Pairs


class DecodeWorker:
    """Owns the parts of one decode worker. Needs no running event loop until `serve`."""

    def __init__(
        self,
        config: DecodeWorkerConfig,
        *,
        member: Member,
        secrets: Secrets,
        engine: ForwardEngine,
        pairs: Pairs,
        tokenizer: Tokenizer,
        cost: StepCost,
    ) -> None:
        self.config = config
        self.member = member
        self.secrets = secrets
        self.pairs = pairs
        self.tokenizer = tokenizer
        self.monitor = ProgressMonitor()
        self.log = EventLog(member.worker.incarnation)
        self.pool = BlockPool(config.num_blocks, config.block_size, config.hash_grain)
        self.thread = EngineThread(engine)
        batcher = _batcher(config, self.pool, cost)
        self.scheduler = DecodeScheduler(batcher, cost, self._changed)
        self.loop = StepLoop(self.scheduler, self.thread, self.monitor)

    async def serve(self, drain: asyncio.Event, ready: Ready = print_ready) -> None:
        """Until `drain` is set and what is in progress has ended."""
        config = self.config
        async with asyncio.TaskGroup() as fences:
            self.hand_overs = HandOvers(
                self.member.worker,
                self.secrets.cluster_token,
                self.scheduler,
                self.pairs,
                fences,
                digest=config.digest == "content",
                lease_s=config.lease_s,
                grant_s=config.grant_s,
            )
            feed = WatchFeed(self.log, self._load)
            self.service = DecodeService(
                config,
                self.member.worker,
                self.secrets,
                self.tokenizer,
                self.scheduler,
                self.hand_overs,
                feed,
            )
            await serve(self._process(feed), drain, ready)
            await self.hand_overs.close()
        self.thread.close()
        self.pairs.close()

    def _process(self, feed: WatchFeed) -> WorkerProcess:
        service = self.service
        handlers = service_handlers(
            "penstock.v1.Decode",
            {"Generate": service.generate},
            token=self.secrets.cluster_token,
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
        self.hand_overs.check()

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
            num_quarantined_blocks=self.hand_overs.num_quarantined_blocks,
            is_serving=self._is_serving(),
            is_draining=self.service.is_draining,
            step_age_s=self.monitor.step_age_s,
            counters=self.scheduler.counters() | self.hand_overs.counters(),
        )


def _batcher(config: DecodeWorkerConfig, pool: BlockPool, cost: StepCost) -> Batcher:
    budget = Budget(
        max_sequences=config.max_sequences,
        max_tokens=config.max_batch_tokens,
        chunk_s=config.chunk_s,
    )
    return Batcher(pool, budget, prefill_cost=lambda: cost.prefill)
