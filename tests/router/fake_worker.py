"""A worker without an engine: a real gRPC server that watches, registers, and echoes prompts.

What goes wrong in real ones can be asked for: see `Faults`.
"""

import asyncio
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

from cluster.block_hash import grain_hashes
from cluster.channel import open_channel
from cluster.door import door_service
from cluster.errors import InvalidRequest, Overloaded, PenstockError
from cluster.events import EventLog
from cluster.health import HealthState
from cluster.membership import new_incarnation
from cluster.open_calls import OpenCalls
from cluster.proof import Doorkeeper, audience_of
from cluster.rpc import UNBOUNDED, Call, Server, service_handlers
from cluster.types import (
    CacheChange,
    DrainReport,
    Fingerprint,
    Incarnation,
    LoadReport,
    Member,
    PrefillCost,
    Role,
    WorkerAddress,
    WorkerId,
)
from cluster.watch import WatchFeed
from penstock.v1 import inference_pb2, worker_pb2
from tests.router.fake_cache import FakeCache
from worker.drain import Drain
from worker.orders import Orders
from worker.registrar import Heartbeat, RpcRegistrar

TOKEN = "token-of-the-tests-cluster"


@dataclass(slots=True, eq=False)
class Faults:
    """What goes wrong with each request; nothing by default."""

    refuse: PenstockError | None = None  # raised before anything is sent
    fail_after: int | None = None  # messages, then the process dies
    end_after: int | None = None  # messages, then the stream ends as if all was well
    raise_after: tuple[int, PenstockError] | None = None
    stall_after: int | None = None  # messages, then nothing until resumed


@dataclass(slots=True, eq=False)
class FakeWorker:
    """Echoes the prompt, one token a message. `async with` starts it, registered at a router."""

    name: str
    router: str  # its address
    fingerprint: Fingerprint
    model: str
    role: Role = Role.DECODE
    incarnation: Incarnation = field(default_factory=new_incarnation)
    address: str = "127.0.0.1:0"
    load: LoadReport = field(
        default_factory=lambda: LoadReport(
            num_free_blocks=1000, num_blocks=1000, prefill_cost=PrefillCost(c0=0.001, c1=1e-4)
        )
    )
    faults: Faults = field(default_factory=Faults)
    report_interval_s: float = 0.05
    text: str = ""  # what every message says
    finish_reason: inference_pb2.FinishReason = inference_pb2.FINISH_REASON_LENGTH
    delay_s: float = 0.0  # what a prompt takes
    hash_key: bytes | None = None  # with it prompts are cached once they are served
    cache_grains: int = 1 << 20
    requests: list[worker_pb2.DecodeRequest] = field(default_factory=list)
    reports_requests: bool = False  # those served now run, beside what `load` says
    num_open: int = 0
    num_cancelled: int = 0
    num_sent: int = 0  # messages
    served: asyncio.Event = field(default_factory=asyncio.Event)  # a request has begun
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    remaining_s: float | None = None  # of the last request, when it came
    log: EventLog = field(init=False)
    feed: WatchFeed = field(init=False)
    doorkeeper: Doorkeeper = field(init=False)
    server: Server = field(init=False)
    heartbeat: Heartbeat = field(init=False)
    drop_events: int = 0  # messages with events that are lost
    refuses_drain: bool = False
    is_old: bool = False  # of a release before promises
    orders: Orders = field(init=False)
    refuses_watch: bool = False
    watches: list[worker_pb2.WatchRequest] = field(default_factory=list)
    cache: FakeCache = field(init=False)
    _watching: list[asyncio.Task[Any]] = field(default_factory=list)
    _resumed: asyncio.Event = field(default_factory=asyncio.Event)
    speaks: asyncio.Event = field(default_factory=asyncio.Event)  # to who watches
    _has_heartbeat: bool = True
    _tasks: list[asyncio.Task[Any]] = field(default_factory=list)
    _channel: Any = None

    def __post_init__(self) -> None:
        self.log = EventLog(self.incarnation)
        self.cache = FakeCache(self.log, self.cache_grains)
        self.speaks.set()
        self.feed = WatchFeed(self.log, self.reported, report_interval_s=self.report_interval_s)
        decode = {"Generate": self.generate}
        self.orders = Orders(
            self.member.worker,
            self.role,
            Drain(OpenCalls()),
            drain_s=5.0,
            is_serving=lambda: not self.load.is_draining,
        )
        self.doorkeeper = Doorkeeper(TOKEN)
        self.server = Server(
            [
                door_service(self.doorkeeper),
                service_handlers("penstock.v1.Decode", decode, door=self.doorkeeper),
                service_handlers(
                    "penstock.v1.Worker",
                    {
                        "Watch": self.watch,
                        "Drain": self.drain,
                        "Undrain": self.undrain,
                        **({} if self.is_old else {"Stay": self.orders.stay}),
                    },
                    door=self.doorkeeper,
                    deadlines=UNBOUNDED,
                ),
            ],
            address=self.address,
            health=HealthState(),
        )

    @property
    def member(self) -> Member:
        address = WorkerAddress(
            worker_id=WorkerId(self.name),
            incarnation=self.incarnation,
            address=self.address,
            transports={},
            fingerprint=self.fingerprint,
        )
        return Member(
            worker=address,
            role=self.role,
            model=self.model,
            context_length=2048,
            max_sequences=64,
        )

    def stores(self, *hashes: Any) -> None:
        self.log.append(CacheChange(stored=tuple(hashes)))

    def report(self, **changes: Any) -> None:
        """Reports another load from now on."""
        self.load = replace(self.load, **changes)
        self.feed.report_now()

    def reported(self) -> LoadReport:
        if not self.reports_requests:
            return self.load
        return replace(self.load, num_running=self.load.num_running + self.num_open)

    def resume(self) -> None:
        """Ends a stall."""
        self._resumed.set()

    def freeze(self) -> None:
        """As SIGSTOP: connections stay, nothing is said any more."""
        self.speaks.clear()
        for task in self._tasks:
            task.cancel()

    def stop_heartbeat(self) -> None:
        for task in self._tasks:
            task.cancel()

    def break_watch(self, *, refuse: bool = False) -> None:
        """Ends the streams that watch; with `refuse`, further ones, too."""
        self.refuses_watch = refuse
        for task in self._watching:
            task.cancel()

    async def watch(self, request: worker_pb2.WatchRequest, call: Call) -> None:
        async def send(message: Any) -> None:
            await self.speaks.wait()
            if message.WhichOneof("report") == "events" and self.drop_events:
                self.drop_events -= 1
            else:
                await call.send(message)

        if self.refuses_watch:
            raise Overloaded("Nobody may watch.")
        self.watches.append(request)
        watching = asyncio.create_task(self.feed.watch(request, send))
        self._watching.append(watching)
        try:
            await asyncio.wait([watching])
        finally:
            watching.cancel()
            self._watching.remove(watching)

    async def drain(self, request: worker_pb2.DrainRequest, call: Call) -> worker_pb2.DrainResponse:
        if self.refuses_drain:
            raise InvalidRequest("then", "not now")
        told = await self.orders.drain(request, call)
        drain = DrainReport(seconds=0.0, left_s=request.limit_seconds)
        self.report(is_serving=False, is_draining=True, drain=drain)
        return told

    async def undrain(
        self, request: worker_pb2.UndrainRequest, call: Call
    ) -> worker_pb2.UndrainResponse:
        self.report(is_serving=True, is_draining=False, drain=None)
        return await self.orders.undrain(request, call)

    async def generate(self, request: worker_pb2.DecodeRequest, call: Call) -> None:
        self.requests.append(request)
        self.remaining_s = call.remaining_s
        self.feed.admitted(request.request_id)
        self.served.set()
        self.num_open += 1
        try:
            await self._echo(request, call)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            self.cancelled.set()
            raise
        finally:
            self.num_open -= 1

    async def _echo(self, request: worker_pb2.DecodeRequest, call: Call) -> None:
        if self.faults.refuse:
            raise self.faults.refuse
        num_cached = self._compute(request)
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        ids = list(request.prompt_token_ids)[: request.params.max_tokens]
        for number, token_id in enumerate(ids):
            await self._go_wrong(number)
            if number == self.faults.end_after:
                return
            message = self._message(request, number, token_id, is_last=number + 1 == len(ids))
            if number == 0:
                message.accepted.cached_tokens = num_cached
            await call.send(message)
            self.num_sent += 1
        await self._go_wrong(len(ids))

    def _compute(self, request: worker_pb2.DecodeRequest) -> int:
        """Caches the prompt; returns how many of its tokens were cached before."""
        if self.hash_key is None:
            return 0
        grain = self.fingerprint.hash_grain
        hashes = grain_hashes(self.hash_key, list(request.prompt_token_ids), grain)
        return grain * self.cache.use(hashes)

    async def _go_wrong(self, num_sent: int) -> None:
        faults = self.faults
        if num_sent == faults.fail_after:
            # Not awaited from inside the call that it ends.
            self._tasks.append(asyncio.create_task(self.die()))
            await asyncio.Event().wait()
        if num_sent == faults.stall_after:
            await self._resumed.wait()
        if faults.raise_after and num_sent == faults.raise_after[0]:
            raise faults.raise_after[1]

    def _message(
        self, request: worker_pb2.DecodeRequest, number: int, token_id: int, *, is_last: bool
    ) -> inference_pb2.GenerateResponse:
        message = inference_pb2.GenerateResponse(
            deltas=[inference_pb2.Delta(index=number, token_ids=[token_id], text=self.text)]
        )
        if number == 0:
            message.accepted.request_id = request.request_id
            message.accepted.model = request.model
            message.accepted.decode_worker = self.name
            message.accepted.prefill_worker = request.prefill.worker_id
            message.accepted.seed = request.params.seed
            message.accepted.prompt_tokens = len(request.prompt_token_ids)
        if is_last:
            finish = message.finished.choices.add()
            finish.reason = self.finish_reason
            message.finished.usage.completion_tokens = number + 1
        return message

    async def die(self) -> None:
        """As the death of the process: connections break, heartbeats end, nobody says goodbye."""
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        assert self.server._server is not None
        await self.server._server.stop(None)  # not ours, which has last words for everybody

    def without_heartbeat(self) -> Self:
        """For `async with`: registers nowhere."""
        self._has_heartbeat = False
        return self

    async def __aenter__(self) -> Self:
        await self.server.start()
        self.address = self.server.address
        self.doorkeeper.audience = audience_of(self.member.worker)
        self._channel = open_channel(self.router, TOKEN)
        self.heartbeat = Heartbeat(RpcRegistrar(self._channel), self.member, interval_s=0.2)
        if self._has_heartbeat:
            self._tasks.append(asyncio.create_task(self.heartbeat.run()))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close()
        await self.server.stop(0)
