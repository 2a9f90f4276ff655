"""One life of a prefill worker put together, from start to drained."""

import asyncio

from cluster.process import Ready, print_ready
from prefill_worker.config import PrefillWorkerConfig
from prefill_worker.scheduler import PrefillScheduler
from prefill_worker.service import PrefillService
from worker.parts import WorkerParts
from worker.process import NextLife
from worker.transfers import Transfers
from worker.worker import RoleService, Worker


class PrefillWorker:
    """Owns the parts of one prefill worker. Needs no running event loop until `serve`."""

    def __init__(self, config: PrefillWorkerConfig, parts: WorkerParts) -> None:
        self.config = config
        self.parts = parts
        self.member = parts.member
        self.worker = Worker(config, parts, self._make_scheduler)
        self.pool = self.worker.pool

    async def serve(self, end: asyncio.Event, ready: Ready = print_ready) -> NextLife | None:
        """Until `end` is set, or another role is asked for, and what is in progress has ended."""
        return await self.worker.serve(self._role, end, ready)

    def check(self) -> None:
        """Raises AssertionError unless every block is accounted for."""
        self.worker.check()

    def _make_scheduler(self, worker: Worker) -> PrefillScheduler:
        reserve_blocks = int(self.config.num_blocks * self.config.watermark)
        batcher = worker.batcher(decodes=False, reserve_blocks=reserve_blocks)
        self.scheduler = PrefillScheduler(batcher, self.parts.cost, worker.changed)
        return self.scheduler

    def _role(self, transfers: Transfers) -> RoleService:
        monitor = self.worker.monitor
        self.service = PrefillService(
            self.config,
            self.member.worker,
            self.parts.secrets,
            self.scheduler,
            transfers,
            self.worker.feed,
            is_making_progress=lambda: not monitor.is_stale(),
        )
        transfers.source.lend_prompt = self.service.lend
        return RoleService()
