"""One decode worker put together, from start to drained."""

import asyncio
from dataclasses import replace

from cluster.process import Ready, print_ready
from cluster.tokenizer import Tokenizer
from cluster.types import LoadReport
from decode_worker.config import DecodeWorkerConfig
from decode_worker.hand_over import HandOvers
from decode_worker.scheduler import DecodeScheduler
from decode_worker.service import DecodeService
from worker.parts import WorkerParts
from worker.worker import RoleService, Worker


class DecodeWorker:
    """Owns the parts of one decode worker. Needs no running event loop until `serve`."""

    def __init__(
        self, config: DecodeWorkerConfig, parts: WorkerParts, *, tokenizer: Tokenizer
    ) -> None:
        self.config = config
        self.member = parts.member
        self.tokenizer = tokenizer
        self.worker = Worker(config, parts, self._make_scheduler)
        self.pool = self.worker.pool

    async def serve(self, drain: asyncio.Event, ready: Ready = print_ready) -> None:
        """Until `drain` is set and what is in progress has ended."""
        config, parts = self.config, self.worker.parts
        async with asyncio.TaskGroup() as fences:
            self.hand_overs = HandOvers(
                self.member.worker,
                parts.secrets.cluster_token,
                self.scheduler,
                parts.pairs,
                fences,
                digest=config.digest == "content",
                lease_s=config.lease_s,
                grant_s=config.grant_s,
            )
            self.service = DecodeService(
                config,
                self.member.worker,
                parts.secrets,
                self.tokenizer,
                self.scheduler,
                self.hand_overs,
                self.worker.feed,
                self.worker.open_calls,
            )
            await self.worker.serve(self._role(), drain, ready)
            await self.hand_overs.close()
        self.worker.close()

    def check(self) -> None:
        """Raises AssertionError unless every block is accounted for."""
        self.worker.check()

    def _make_scheduler(self, worker: Worker) -> DecodeScheduler:
        self.scheduler = DecodeScheduler(worker.batcher(), worker.parts.cost, worker.changed)
        return self.scheduler

    def _role(self) -> RoleService:
        return RoleService(
            name="penstock.v1.Decode",
            rpcs={"Generate": self.service.generate},
            load=self._load,
            check=self.hand_overs.check,
        )

    def _load(self, report: LoadReport) -> LoadReport:
        hand_overs = self.hand_overs
        return replace(
            report,
            num_quarantined_blocks=hand_overs.num_quarantined_blocks,
            counters={**report.counters, **hand_overs.counters()},
        )
