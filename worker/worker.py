"""Holds what workers of both roles have in common, for one life from start to drained: an engine on
its thread, a block pool whose changes the routers hear of, and a process around them.

A role adds a scheduler and a service.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster.diagnosis import Diagnosis
from cluster.errors import StartupError
from cluster.events import EventLog
from cluster.health import ProgressMonitor
from cluster.lateness import AttentiveClock
from cluster.metrics.exposition import Registry
from cluster.metrics.process import ServingProcess
from cluster.metrics.server import metrics_pages, scraped_at
from cluster.open_calls import OpenCalls
from cluster.process import Ready, print_ready
from cluster.proof import Doorkeeper
from cluster.rpc import Serve, service_handlers
from cluster.tracing import SpanCounts
from cluster.types import LoadReport
from cluster.watch import WatchFeed
from engine.batcher import Batcher
from engine.block_pool import BlockPool
from engine.budget import Budget
from engine.step_loop import StepLoop
from engine.thread import EngineThread
from worker.config import WorkerConfig
from worker.drain import Drain
from worker.frame_server import FrameServer
from worker.metrics import WORKER, WorkerReading
from worker.parts import WorkerParts, kv_tls_ports
from worker.process import NextLife, WorkerProcess, serve
from worker.scheduler import Scheduler
from worker.transfers import Transfers

LAST_STEP_S = 10.0  # that was begun before all was drained: longer, and the engine is wedged


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleService:
    """Offers what a role alone has for the outside, and knows."""

    name: str | None = None  # of its gRPC service, if it has one
    rpcs: Mapping[str, Serve] = field(default_factory=dict)
    frames: FrameServer | None = None  # by which one of these is served, too
    counters: Callable[[], Mapping[str, float]] = dict


class Worker(ABC):
    """Owns the parts. Needs no running event loop until `serve`."""

    def __init__(self, config: WorkerConfig, parts: WorkerParts) -> None:
        self.config = config
        self.parts = parts
        self.attention = AttentiveClock()
        self.monitor = ProgressMonitor(clock=self.attention.now)
        self.member = parts.member
        self.log = EventLog(parts.member.worker.incarnation)
        self.pool = BlockPool(
            config.num_blocks,
            config.block_size,
            config.hash_grain,
            window=parts.member.worker.fingerprint.layout.widest_window,
        )
        self.thread = EngineThread(parts.engine)
        self.open_calls = OpenCalls()
        self.drain = Drain(self.open_calls)
        self.feed = WatchFeed(self.log, self.load)
        self.scheduler: Scheduler = self._make_scheduler()
        self._loop = StepLoop(self.scheduler, self.thread, self.monitor)
        self._role: RoleService | None = None
        self._transfers: Transfers | None = None

    def batcher(self, *, decodes: bool = True, reserve_blocks: int = 0) -> Batcher:
        """Forms batches over the pool, within the limits of the configuration."""
        config, cost = self.config, self.parts.cost
        budget = Budget(
            max_sequences=config.max_sequences,
            max_tokens=config.max_batch_tokens,
            chunk_s=config.chunk_s,
        )
        return Batcher(
            self.pool,
            budget,
            prefill_cost=lambda: cost.prefill,
            decode_cost=lambda: cost.decode,
            decodes=decodes,
            reserve_blocks=reserve_blocks,
        )

    def changed(self) -> None:
        """Something was freed, stored or added: tells the routers, and sees what can run."""
        if (change := self.pool.take_changes()) is not None:
            self.log.append(change)
        self._loop.wake()

    @abstractmethod
    def _make_scheduler(self) -> Scheduler: ...

    @abstractmethod
    def _make_role(self, transfers: Transfers) -> RoleService: ...

    async def serve(self, end: asyncio.Event, ready: Ready = print_ready) -> NextLife | None:
        """Serves until `end` is set or another role asked for, and what is in progress has ended.

        Raises StartupError where no other life can have the engine and its memory.
        """
        async with asyncio.TaskGroup() as tasks:
            transfers = Transfers(
                self.config, self.parts, self.scheduler, self.open_calls, tasks, self.attention
            )
            self._transfers, self._role = transfers, self._make_role(transfers)
            next_life = await serve(self._process(self._role, transfers), end, ready)
            if next_life is not None:
                await transfers.settle()
            await transfers.close()
        self.thread.close()
        if next_life is None:
            self.parts.pairs.close()
            return None
        if not await self.thread.has_ended(LAST_STEP_S):
            raise StartupError(
                "This process cannot go on in another role, and ends: a step of its engine has not"
                f" ended within {LAST_STEP_S:g} s."
            )
        self.parts.pairs.close_transports()
        return next_life

    def check(self) -> None:
        """Raises AssertionError unless every block is accounted for."""
        self.scheduler.check()
        if self._transfers is not None:
            self._transfers.check()

    def _process(self, role: RoleService, transfers: Transfers) -> WorkerProcess:
        doorkeeper = Doorkeeper(self.parts.secrets.cluster_token)
        tracing = self.parts.tracing
        facts = ServingProcess(
            part=self.member.role,
            model=self.config.model,
            attention=self.attention,
            spans=tracing.sink.counts if tracing else SpanCounts(),
        )
        services = []
        if role.name is not None:
            rpcs = dict(role.rpcs)
            if role.frames is not None:
                rpcs["Frames"] = role.frames.invite
            services.append(service_handlers(role.name, rpcs, door=doorkeeper))
        return WorkerProcess(
            cluster=self.config.cluster,
            member=self.parts.member,
            listens=self.config.address,
            secrets=self.parts.secrets,
            credentials=self.parts.credentials,
            doorkeeper=doorkeeper,
            router=self.config.router,
            services=services,
            frames=role.frames,
            rpcs=transfers.rpcs,
            heard=transfers.keeper.update,
            settled=transfers.keeper.settled.wait,
            at_rest=transfers.at_rest,
            feed=self.feed,
            metrics=scraped_at(self.config.metrics, metrics_pages(self._registry(facts))),
            run=[self._loop.run(), self.attention.keep(facts.lag)],
            is_serving=self._is_serving,
            is_moving=lambda: not self.monitor.is_stale(),
            drain=self.drain,
            diagnosis=self._diagnosis(),
            check=self.check,
            drain_s=self.config.drain_s,
        )

    def _registry(self, facts: ServingProcess) -> Registry[WorkerReading]:
        layout = self.member.worker.fingerprint.layout
        block_bytes = layout.pool_bytes // layout.num_blocks

        def reading() -> WorkerReading:
            return WorkerReading(
                load=self.load(), steps=self.scheduler.steps, block_bytes=block_bytes
            )

        return Registry(WORKER, reading, facts)

    def _diagnosis(self) -> Diagnosis:
        config = self.config
        return Diagnosis(
            secrets_file=config.secrets_file,
            store=config.router,
            store_password=self.parts.secrets.store_password,
            run_dir=Path(config.run_dir),
            num_threads=config.num_threads,
            checks_content=config.digest == "content",
            required_transport=config.require_transport,
            choices=self.parts.measurements.choices,
            tls_ports=kv_tls_ports(self.parts),
        )

    def _is_serving(self) -> bool:
        """Asked four times a second, which is also how our own lateness is noticed."""
        self.monitor.set_waiting(self.scheduler.could_run)
        is_known = self._transfers is not None and self._transfers.keeper.settled.is_set()
        return is_known and not self.open_calls.is_draining and not self.monitor.is_stale()

    def load(self) -> LoadReport:
        """Reports what routers are told."""
        assert self._role is not None, "nobody watches before it serves"
        assert self._transfers is not None
        report = replace(
            self.scheduler.load(),
            is_serving=self._is_serving(),
            is_draining=self.open_calls.is_draining,
            drain=self.drain.report(),
            num_open_calls=self.open_calls.num,
            step_age_s=self.monitor.step_age_s,
            counters={**self.scheduler.counters(), **self._role.counters()},
        )
        return self._transfers.load(report)
