"""One life of a decode worker put together, from start to drained."""

from decode_worker.config import DecodeWorkerConfig
from decode_worker.remote import RemotePrompts
from decode_worker.scheduler import DecodeScheduler
from decode_worker.service import DecodeService
from worker.frame_server import FrameServer
from worker.transfers import Transfers
from worker.worker import RoleService, Worker


class DecodeWorker(Worker):
    config: DecodeWorkerConfig
    scheduler: DecodeScheduler

    def _make_scheduler(self) -> DecodeScheduler:
        return DecodeScheduler(self.batcher(), self.parts.cost, self.changed)

    def _make_role(self, transfers: Transfers) -> RoleService:
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
            self.feed,
            self.open_calls,
            self.parts.tracing,
        )
        name, generate = "penstock.v1.Decode", self.service.generate
        frames = FrameServer(name, "Generate", generate, self.attention, config.grace)
        hand_overs, outliving = self.remote_prompts, frames.outliving
        return RoleService(
            name=name,
            rpcs={"Generate": generate},
            frames=frames,
            counters=lambda: hand_overs.counters() | outliving.counters(),
        )
