"""One life of a prefill worker put together, from start to drained."""

from prefill_worker.config import PrefillWorkerConfig
from prefill_worker.scheduler import PrefillScheduler
from prefill_worker.service import PrefillService
from worker.transfers import Transfers
from worker.worker import RoleService, Worker


class PrefillWorker(Worker):
    config: PrefillWorkerConfig
    scheduler: PrefillScheduler

    def _make_scheduler(self) -> PrefillScheduler:
        reserve_blocks = int(self.config.num_blocks * self.config.watermark)
        batcher = self.batcher(decodes=False, reserve_blocks=reserve_blocks)
        return PrefillScheduler(batcher, self.parts.cost, self.changed)

    def _make_role(self, transfers: Transfers) -> RoleService:
        monitor = self.monitor
        self.service = PrefillService(
            self.config,
            self.member.worker,
            self.parts.secrets,
            self.scheduler,
            transfers,
            self.feed,
            is_making_progress=lambda: not monitor.is_stale(),
            tracing=self.parts.tracing,
        )
        transfers.source.lend_prompt = self.service.lend
        return RoleService()
