"""One life of a worker around its scheduler: serve, register, report, drain. The same for both
roles; another may follow it in the same process.

Knows no engine and no transfer; they come as coroutines to run and functions to ask.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from cluster.addresses import Endpoint
from cluster.authority import Credentials
from cluster.channel import INTERNAL_MESSAGE_BYTES, open_channel
from cluster.chat_template import ChatTemplate
from cluster.diagnosis import Diagnosis
from cluster.door import door_service
from cluster.health import HealthState, follow_progress
from cluster.membership import Membership
from cluster.metrics.server import MetricsServer
from cluster.model_digest import model_digest, tokenizer_digest
from cluster.process import Ready
from cluster.proof import Doorkeeper, audience_of
from cluster.rpc import UNBOUNDED, Call, Serve, Server, Service, service_handlers
from cluster.sealed_store import SealedStore
from cluster.secrets import Secrets
from cluster.store import prefix_of
from cluster.types import (
    Fingerprint,
    Incarnation,
    KvLayout,
    Member,
    Role,
    WorkerAddress,
    WorkerId,
)
from cluster.watch import WatchFeed
from penstock.v1 import worker_pb2
from worker.drain import Drain
from worker.frame_server import FrameServer
from worker.orders import Orders
from worker.registrar import Heartbeat, Registrar, RpcRegistrar, StoreRegistrar

logger = logging.getLogger(__name__)
_CHECK_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerProcess:
    """Holds what one worker consists of, as its process sees it."""

    cluster: str | None  # its name
    member: Member  # its address may still say port 0
    listens: str  # where it does, which may be another host than others dial
    secrets: Secrets
    credentials: Credentials
    doorkeeper: Doorkeeper  # of `services`, too
    router: str  # its host:port, or the URL of a Redis
    services: Sequence[Service]
    frames: FrameServer | None  # by which the first of them is served, too
    rpcs: Mapping[str, Serve]  # of the service Worker, beside those that all processes answer
    heard: Callable[[Member, Sequence[Member]], None]  # who we are and who is there, each time
    settled: Callable[[], Awaitable[Any]]  # returns when it has tried to reach those found first
    at_rest: Callable[[], Awaitable[None]]  # returns when no KV moves into its pool, nor out of it
    feed: WatchFeed
    metrics: MetricsServer | None  # None: nobody is to scrape it
    run: Sequence[Coroutine[Any, Any, Any]]  # until cancelled
    is_serving: Callable[[], bool]
    is_moving: Callable[[], bool]  # steps end, though it may be draining
    drain: Drain
    diagnosis: Diagnosis
    check: Callable[[], None]
    drain_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NextLife:
    """Says what follows a life in the same process."""

    role: Role
    address: str  # where it listens, as before: who supervises the process knows it
    metrics: str | None  # where it is scraped, likewise; None: nowhere


async def serve(worker: WorkerProcess, end: asyncio.Event, ready: Ready) -> NextLife | None:
    """Serves until `end` is set, or another role is asked for, and what is in progress has ended,
    or its time is up."""
    health = HealthState(["penstock.v1.Worker", f"penstock.v1.{worker.member.role.title()}"])
    server = Server(
        [*worker.services, _watch_service(worker), door_service(worker.doorkeeper)],
        address=worker.listens,
        health=health,
        max_receive_bytes=INTERNAL_MESSAGE_BYTES,
        credentials=worker.credentials,
    )
    scraped_at = worker.metrics or nullcontext()
    async with _frames(worker), server, scraped_at, _registrar(worker) as registrar:
        host, port = Endpoint.parse(worker.member.worker.address).host, server.port
        address = replace(worker.member.worker, address=str(Endpoint(host, port)))
        if server.is_tls:
            worker.diagnosis.tls_ports.add(port)
        worker.doorkeeper.audience = audience_of(address)
        scraped = worker.metrics.address if worker.metrics else None
        member = replace(worker.member, worker=address, metrics=_seen_at(scraped, host))
        heartbeat = Heartbeat(registrar, member, heard=worker.heard)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(each)
                for each in (
                    *worker.run,
                    follow_progress(health, worker.is_serving, is_moving=worker.is_moving),
                    _check_accounts(worker.check),
                )
            ]
            tasks.append(group.create_task(_end_when_told(worker, end)))
            beating = group.create_task(heartbeat.run())
            await _either(heartbeat.registered, end)  # its router may be away for long
            if not end.is_set():
                await worker.settled()
                health.set_all(worker.is_serving())
                ready(
                    role=worker.member.role,
                    address=server.address,
                    worker_id=address.worker_id,
                    incarnation=address.incarnation,
                    **({"metrics": scraped} if scraped else {}),
                )
            role = await _until_drained(worker, health)
            await server.stop()  # while what serves them still runs, and can give back
            if worker.frames is not None:
                await worker.frames.stop()
            for task in (beating, *tasks):
                task.cancel()
        await heartbeat.leave()
    if role is None:
        return None
    return NextLife(role=role, address=server.address, metrics=scraped)


def _seen_at(scraped: str | None, host: str) -> str:
    """Says where others scrape it: at the `host` that they dial, where it listens everywhere."""
    if scraped is None:
        return ""
    endpoint = Endpoint.parse(scraped)
    return str(Endpoint(host, endpoint.port)) if endpoint.is_any else scraped


@asynccontextmanager
async def _frames(worker: WorkerProcess) -> AsyncIterator[None]:
    """Listens where the server does, at a port of its own."""
    frames = worker.frames
    if frames is None:
        yield
        return
    identity = worker.credentials.at(worker.listens)
    host, [service, *_] = Endpoint.parse(worker.listens).host, worker.services
    await frames.start(host, identity, service.open_calls)
    if identity is not None:
        worker.diagnosis.tls_ports.add(frames.port)
    try:
        yield
    finally:
        await frames.stop()


async def _either(*events: asyncio.Event) -> None:
    """Returns when one of them is set."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


@asynccontextmanager
async def _registrar(worker: WorkerProcess) -> AsyncIterator[Registrar]:
    """Registers at a router, or in the Redis that several routers read."""
    if "://" in worker.router:
        from cluster.redis_store import RedisStore  # here: its library takes 0.15 s to import

        secrets, prefix = worker.secrets, prefix_of(worker.cluster)
        redis = RedisStore(worker.router, prefix=prefix, password=secrets.store_password)
        store = SealedStore(redis, secrets.cluster_token)
        try:
            yield StoreRegistrar(Membership(store))
        finally:
            await store.close()
    else:
        token, credentials = worker.secrets.cluster_token, worker.credentials
        async with open_channel(worker.router, token, credentials=credentials) as channel:
            yield RpcRegistrar(channel)


async def _end_when_told(worker: WorkerProcess, end: asyncio.Event) -> None:
    await end.wait()
    worker.drain.begin(worker.drain_s, ends=True)


async def _until_drained(worker: WorkerProcess, health: HealthState) -> Role | None:
    """Returns the role of the next life. Who drains is NOT_SERVING at once."""

    def changed() -> None:
        health.set_all(worker.is_serving())
        worker.feed.report_now()

    return await worker.drain.follow(
        changed=changed,
        served=[service.open_calls for service in worker.services],
        at_rest=worker.at_rest,
    )


async def _check_accounts(check: Callable[[], None]) -> None:
    """free + used + cached = total, asked in production as well."""
    while True:
        await asyncio.sleep(_CHECK_S)
        try:
            check()
        except AssertionError:
            logger.exception("the accounts of this worker do not add up")


def _watch_service(worker: WorkerProcess) -> Service:
    async def watch(request: worker_pb2.WatchRequest, call: Call) -> None:
        await worker.feed.watch(request, call.send)

    orders = Orders(
        worker.member.worker,
        worker.member.role,
        worker.drain,
        drain_s=worker.drain_s,
        is_serving=worker.is_serving,
    )
    return service_handlers(
        "penstock.v1.Worker",
        {
            "Watch": watch,
            "Diagnose": worker.diagnosis.diagnose,
            **orders.rpcs,
            **worker.rpcs,
        },
        door=worker.doorkeeper,
        deadlines=UNBOUNDED,
    )


class WorkerSettings(Protocol):
    """Offers what both workers' configurations say about who they are."""

    @property
    def checkpoint(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def worker_id(self) -> str: ...
    @property
    def dialled(self) -> Endpoint: ...
    @property
    def hash_grain(self) -> int: ...
    @property
    def max_sequences(self) -> int: ...

    @property
    def verify_weights(self) -> bool: ...


def describe(
    settings: WorkerSettings,
    role: Role,
    *,
    incarnation: Incarnation,
    layout: KvLayout,
    context_length: int,
    transports: Mapping[str, str],
    wire_dtype: str | None = None,
) -> Member:
    """The worker as it registers itself, and what its peers compare before bytes move."""
    checkpoint = Path(settings.checkpoint)
    fingerprint = Fingerprint(
        model_digest=model_digest(checkpoint, verify_weights=settings.verify_weights),
        tokenizer_digest=tokenizer_digest(checkpoint),
        template_digest=ChatTemplate.load(checkpoint).digest,
        hash_grain=settings.hash_grain,
        layout=layout,
        wire_dtype=wire_dtype,
    )
    worker = WorkerAddress(
        worker_id=WorkerId(settings.worker_id),
        incarnation=incarnation,
        address=str(settings.dialled),
        transports=transports,
        fingerprint=fingerprint,
    )
    return Member(
        worker=worker,
        role=role,
        model=settings.model,
        context_length=context_length,
        max_sequences=settings.max_sequences,
    )
