"""A whole cluster in one event loop: the real router, real workers, real gRPC; echo engines
and pools of one process. What the workers' tests run against."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cluster.authority import PLAIN
from cluster.errors import PenstockError
from cluster.measurements import Measurements
from cluster.membership import Membership, new_incarnation
from cluster.secrets import load_secrets
from cluster.tokenizer import Tokenizer
from cluster.tracing import Tracing
from cluster.types import Incarnation, KvLayout, Role
from decode_worker.config import DecodeWorkerConfig
from decode_worker.worker import DecodeWorker
from engine.echo import EchoEngine, echo_layout
from engine.thread import ForwardEngine
from engine.warm_up import warm_up
from kv_transfer.doors import DoorSettings, open_doors
from kv_transfer.memory_transport import MemoryNetwork, MemoryTransport
from kv_transfer.pairs import Pairs
from kv_transfer.pool import FilePool, KvPool, PoolConfig
from kv_transfer.transport import Transport
from prefill_worker.config import PrefillWorkerConfig
from prefill_worker.worker import PrefillWorker
from router.policy import Disaggregate
from tests.kv_transfer.faulty_transport import FaultPlan
from tests.router.cluster_of_fakes import Cluster
from tests.router.fake_worker import TOKEN
from worker.cost import StepCost
from worker.parts import WorkerParts
from worker.process import describe

Worker = DecodeWorker | PrefillWorker
MakeEngine = Callable[[KvLayout, memoryview], ForwardEngine]


class Gate:
    """Stops an engine's thread at a layer until it is opened: no sleeps, no guessing."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self.reached = threading.Event()

    def close(self) -> None:
        self.reached.clear()
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def pass_through(self, layer: int) -> None:
        self.reached.set()
        assert self._open.wait(30), "a gate was never opened"


@dataclass(slots=True, eq=False)
class Running:
    """One worker and its task."""

    worker: Any
    gate: Gate
    drain: asyncio.Event
    task: asyncio.Task[Any]
    transport: Any
    pairs: Pairs
    address: str = ""
    blocker: Any = None  # a call that keeps it busy

    @property
    def name(self) -> str:
        return str(self.worker.member.worker.worker_id)

    @property
    def counters(self) -> dict[str, float]:
        return dict(self.worker.load().counters)

    @property
    def pool(self) -> Any:
        return self.worker.pool

    @property
    def memory(self) -> Any:
        return self.pairs.pool.memory  # type: ignore[attr-defined]  # all rigs are on the host


class LocalCluster(Cluster):
    """`Cluster` with real workers. Everything is checked and empty at exit."""

    def __init__(
        self,
        checkpoint: Path,
        directory: Path,
        *,
        decode: Sequence[dict[str, Any]] = ({},),
        prefill: Sequence[dict[str, Any]] = ({},),
        make_engine: MakeEngine | None = None,
        layout: Callable[..., KvLayout] = echo_layout,
        wrap_transport: Callable[[Transport], Any] = lambda transport: transport,
        door: str = "memory",
        disaggregate: str = "auto",
        tracing: Tracing | None = None,
        **router: Any,
    ) -> None:
        """`door`: the transport between the workers, the in-memory twin or one of `DOORS`."""
        router = {"drain_s": 5.0, "disaggregate": Disaggregate(disaggregate), **router}
        super().__init__(checkpoint, directory, **router)
        self.checkpoint = checkpoint
        self.directory = directory
        self.network = MemoryNetwork()
        self.make_engine = make_engine
        self.layout = layout
        self.wrap_transport = wrap_transport
        self.door = door
        self.tracing = tracing  # of the workers
        self._plan = [(Role.DECODE, each) for each in decode]
        self._plan += [(Role.PREFILL, each) for each in prefill]
        self.decode: list[Running] = []
        self.prefill: list[Running] = []

    @property
    def workers(self) -> list[Running]:
        return [*self.decode, *self.prefill]

    async def start_worker(self, role: Role, **settings: Any) -> Running:
        number = len(self.decode if role is Role.DECODE else self.prefill)
        values = {"worker_id": f"{role}-{number}", "num_blocks": 64, "block_size": 16, **settings}
        gate, drain = Gate(), asyncio.Event()
        worker, transport, pairs = self._build(role, gate, values)
        ready = asyncio.Event()
        found: dict[str, Any] = {}

        def serves(**facts: Any) -> None:
            found.update(facts)
            ready.set()

        task = asyncio.create_task(worker.serve(drain, serves))
        running = Running(
            worker=worker,
            gate=gate,
            drain=drain,
            task=task,
            transport=transport,
            pairs=pairs,
        )
        (self.decode if role is Role.DECODE else self.prefill).append(running)
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait({waiting, task}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        running.address = found["address"]
        return running

    def _build(self, role: Role, gate: Gate, values: dict[str, Any]) -> tuple[Worker, Any, Pairs]:
        common = {
            "checkpoint": str(self.checkpoint),
            "model": "echo",
            "router": self.address,
            "secrets_file": self.directory / "secrets.yaml",
            "run_dir": str(self.directory),
            "drain_s": 5.0,
            **values,
        }
        make: Any = DecodeWorkerConfig if role is Role.DECODE else PrefillWorkerConfig
        config = make(**common)
        dtype = {"dtype": config.kv_dtype} if "kv_dtype" in values else {}
        layout = self.layout(num_blocks=config.num_blocks, block_size=config.block_size, **dtype)
        incarnation = new_incarnation()
        pool, opened = self._open(incarnation, layout.pool_bytes)
        transport = self.wrap_transport(opened)
        pairs = Pairs(pool, [transport], required=config.require_transport)
        member = describe(
            config,
            role,
            incarnation=incarnation,
            layout=layout,
            context_length=512,
            transports=pairs.addresses,
            wire_dtype=values.get("wire_dtype"),
        )
        engine, cost = self._engine(layout, pool.buffer, gate), StepCost()
        if self.make_engine is not None:  # takes its time: as real ones do, it measures it first
            for batch, seconds in warm_up(engine, layout, config.max_batch_tokens):
                cost.observe(batch.prompts, batch.decode_contexts, seconds)
        parts = WorkerParts(
            member=member,
            credentials=PLAIN,
            secrets=load_secrets(config.secrets_file),
            tokenizer=Tokenizer.load(self.checkpoint),
            engine=engine,
            pairs=pairs,
            cost=cost,
            measurements=Measurements(),
            tracing=self.tracing,
        )
        worker: Worker
        if role is Role.PREFILL:
            worker = PrefillWorker(config, parts)
        else:
            worker = DecodeWorker(config, parts)
        return worker, transport, pairs

    def _open(self, incarnation: Incarnation, num_bytes: int) -> tuple[KvPool, Transport]:
        if self.door == "memory":
            memory = self.network.pool(incarnation, num_bytes)
            return memory, MemoryTransport(self.network, memory)
        config = PoolConfig(incarnation=incarnation, num_bytes=num_bytes, run_dir=self.directory)
        pool = FilePool(config)
        [transport] = open_doors([self.door], pool, DoorSettings(key=TOKEN.encode()))
        return pool, transport

    def _engine(self, layout: KvLayout, buffer: memoryview, gate: Gate) -> ForwardEngine:
        if self.make_engine is not None:
            return self.make_engine(layout, buffer)
        return EchoEngine(layout, buffer, before_layer=gate.pass_through)

    def disturb(self, writer: str, receiver: str, plan: FaultPlan) -> None:
        """From now on faults befall what one worker writes to another."""
        source = self.named(writer)
        peer = self.named(receiver).worker.member.worker.incarnation
        source.transport.disturb(peer, plan, source.pairs.pool.memory)

    def named(self, name: str) -> Running:
        return next(running for running in self.workers if running.name == name)

    async def idle(self) -> None:
        """Waits until no worker holds a block, and checks all accounts."""

        def nothing_held() -> bool:
            return all(running.pool.num_held == 0 for running in self.workers)

        await self.until(nothing_held)
        for running in self.workers:
            running.worker.check()

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        for role, settings in self._plan:
            await self.start_worker(role, **settings)
        names = {running.name for running in self.workers}

        def all_serve() -> bool:
            snapshot = self.router.pool.snapshot(self.router.clock())
            return names <= {load.worker for load in snapshot.loads}

        await self.until(all_serve)
        await self.introduce()
        return self

    async def introduce(self) -> None:
        """Tells all workers who is there, as their next heartbeats will."""
        members = await Membership(self.router.store).members()
        for running in self.workers:
            worker = running.worker
            worker._transfers.keeper.update(worker.member, members)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(super().__aexit__, kind, error, traceback)
            for running in self.workers:
                running.gate.open()
            if error is None:
                await self.idle()
            for running in self.workers:
                running.drain.set()
            results = await asyncio.gather(*(r.task for r in self.workers), return_exceptions=True)
            unexpected = [r for r in results if isinstance(r, Exception)]
            if unexpected and error is None and not isinstance(unexpected[0], PenstockError):
                raise unexpected[0]


async def stuck(running: Running) -> None:
    """Returns when a forward of this worker stands still."""
    assert await asyncio.to_thread(running.gate.reached.wait, 10)
