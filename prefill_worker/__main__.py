"""`python -m prefill_worker --config FILE`: one prefill worker, put together."""

import argparse
import asyncio
import sys
from dataclasses import replace
from pathlib import Path

from cluster import process
from cluster.config import load_config
from cluster.events import EventLog
from cluster.health import ProgressMonitor
from cluster.membership import new_incarnation
from cluster.rpc import UNBOUNDED, service_handlers
from cluster.secrets import load_secrets
from cluster.step_cost import StepCost
from cluster.types import KvLayout, LoadReport, Member, Role
from cluster.watch import WatchFeed
from cluster.worker_process import WorkerProcess, describe, serve
from engine.batcher import Batcher, Budget
from engine.block_pool import BlockPool
from engine.build import EngineChoice, build_engine, context_length, layout_of
from engine.step_loop import StepLoop
from engine.thread import EngineThread
from engine.warm_up import warm_up
from kv_transfer.doors import TRANSPORTS
from kv_transfer.transport import PoolConfig, Transport
from prefill_worker.config import PrefillWorkerConfig
from prefill_worker.scheduler import PrefillScheduler, step_shape
from prefill_worker.service import PrefillService


class PrefillWorker:
    """Owns the parts of one worker process; built before the event loop serves anyone."""

    def __init__(self, config: PrefillWorkerConfig) -> None:
        self.config = config
        self.secrets = load_secrets(Path(config.secrets_file))
        self.monitor = ProgressMonitor()
        self.cost = StepCost()
        choice = _engine_choice(config)
        layout = layout_of(choice)
        self.log = EventLog(new_incarnation())
        self.transport = _transport(config, self.log, layout)
        self.member = _member(self, choice, layout)
        engine = build_engine(choice, self.transport.buffer)
        for batch, seconds in warm_up(engine, layout, config.max_batch_tokens):
            self.cost.observe(step_shape(batch), seconds)
        self.pool = BlockPool(config.num_blocks, config.block_size, config.hash_grain)
        self.scheduler = PrefillScheduler(_batcher(self), self.cost, self._changed)
        self.loop = StepLoop(self.scheduler, EngineThread(engine), self.monitor)

    async def serve(self, drain: asyncio.Event) -> None:
        """Until `drain` is set and what is in progress has ended."""
        self.service = PrefillService(
            self.config,
            self.member.worker,
            self.secrets,
            self.scheduler,
            self.transport,
            is_making_progress=lambda: not self.monitor.is_stale(),
        )
        await serve(self._process(), drain)
        self.transport.close()

    def _process(self) -> WorkerProcess:
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
            feed=WatchFeed(self.log, self._load),
            run=[self.loop.run()],
            is_serving=self._is_serving,
            open_calls=service.open_calls,
            begin_drain=service.begin_drain,
            check=self.scheduler.check,
            drain_s=self.config.drain_s,
        )

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


def _engine_choice(config: PrefillWorkerConfig) -> EngineChoice:
    return EngineChoice(
        kind=config.engine,
        checkpoint=Path(config.checkpoint),
        num_blocks=config.num_blocks,
        block_size=config.block_size,
        num_threads=config.num_threads,
        device=config.device,
    )


def _transport(config: PrefillWorkerConfig, log: EventLog, layout: KvLayout) -> Transport:
    pool = PoolConfig(
        incarnation=log.incarnation, num_bytes=layout.pool_bytes, run_dir=Path(config.run_dir)
    )
    return TRANSPORTS[config.transport](pool)


def _member(worker: PrefillWorker, choice: EngineChoice, layout: KvLayout) -> Member:
    return describe(
        worker.config,
        Role.PREFILL,
        incarnation=worker.log.incarnation,
        layout=layout,
        context_length=context_length(choice),
        transports={worker.transport.name: worker.transport.address},
    )


def _batcher(worker: PrefillWorker) -> Batcher:
    config = worker.config
    budget = Budget(
        max_sequences=config.max_sequences,
        max_tokens=config.max_batch_tokens,
        chunk_s=config.chunk_s,
    )
    return Batcher(
        worker.pool,
        budget,
        prefill_cost=lambda: worker.cost.prefill,
        decodes=False,
        reserve_blocks=int(config.num_blocks * config.watermark),
    )


async def _run(config: PrefillWorkerConfig, drain: asyncio.Event) -> None:
    await PrefillWorker(config).serve(drain)


def main() -> int:
    parser = argparse.ArgumentParser(prog="prefill_worker", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="its YAML")
    arguments = parser.parse_args()

    async def serve_configured(drain: asyncio.Event) -> None:
        await _run(load_config(PrefillWorkerConfig, arguments.config), drain)

    return process.run(serve_configured)


if __name__ == "__main__":
    sys.exit(main())
