"""One life of a decode worker put together, from start to drained."""

import asyncio

from cluster.process import Ready, print_ready
from decode_worker.config import DecodeWorkerConfig
from decode_worker.remote import RemotePrompts
from decode_worker.scheduler import DecodeScheduler
from decode_worker.service import DecodeService
from worker.parts import WorkerParts
from worker.process import NextLife
from worker.transfers import Transfers
from worker.worker import RoleService, Worker


class DecodeWorker:
    """Owns the parts of one decode worker. Needs no running event loop until `serve`."""

    def __init__(self, config: DecodeWorkerConfig, parts: WorkerParts) -> None:
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

    def _make_scheduler(self, worker: Worker) -> DecodeScheduler:
        self.scheduler = DecodeScheduler(worker.batcher(), self.parts.cost, worker.changed)
        return self.scheduler

    def _role(self, transfers: Transfers) -> RoleService:
        config, me = self.config, self.member.worker
        self.remote_prompts = RemotePrompts(self.scheduler, transfers, grant_s=config.grant_s)
        self.service = DecodeService(
            config,
            me,
            self.parts.secrets,
            self.parts.tokenizer,
            self.scheduler,
            self.remote_prompts,
            transfers.fetches,
            self.worker.feed,
            self.worker.open_calls,
        )
        return RoleService(
            name="penstock.v1.Decode",
            rpcs={"Generate": self.service.generate},
            counters=self.remote_prompts.counters,
        )
