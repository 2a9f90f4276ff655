"""A worker's life around its scheduler: serve, register, report, drain. The same for both roles.

Knows no engine and no transfer; they come as coroutines to run and functions to ask.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from cluster.channel import INTERNAL_MESSAGE_BYTES, open_channel
from cluster.chat_template import ChatTemplate
from cluster.diagnosis import Diagnosis
from cluster.door import door_service
from cluster.health import HealthState, follow_progress
from cluster.membership import Membership
from cluster.model_digest import model_digest, tokenizer_digest
from cluster.open_calls import OpenCalls
from cluster.process import Ready
from cluster.proof import Doorkeeper, audience_of
from cluster.redis_store import RedisStore
from cluster.registrar import Heartbeat, Registrar, RpcRegistrar, StoreRegistrar
from cluster.rpc import UNBOUNDED, Call, Serve, Server, Service, service_handlers
from cluster.sealed_store import SealedStore
from cluster.secrets import Secrets
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

logger = logging.getLogger(__name__)
_CHECK_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerProcess:
    """What one worker consists of, as its process sees it."""

    member: Member  # its address may still say port 0
    secrets: Secrets
    doorkeeper: Doorkeeper  # of `services`, too
    router: str  # its host:port, or the URL of a Redis
    services: Sequence[Service]
    rpcs: Mapping[str, Serve]  # of the service Worker, beside those that all processes answer
    heard: Callable[[Member, Sequence[Member]], None]  # who we are and who is there, each time
    settled: Callable[[], Awaitable[Any]]  # returns when it has tried to reach those found first
    feed: WatchFeed
    run: Sequence[Coroutine[Any, Any, Any]]  # until cancelled
    is_serving: Callable[[], bool]
    is_moving: Callable[[], bool]  # steps end, though it may be draining
    open_calls: OpenCalls
    diagnosis: Diagnosis
    check: Callable[[], None]
    drain_s: float


async def serve(worker: WorkerProcess, drain: asyncio.Event, ready: Ready) -> None:
    """Serves until `drain` is set and the calls in progress have ended, or their time is up."""
    health = HealthState(["penstock.v1.Worker", f"penstock.v1.{worker.member.role.title()}"])
    server = Server(
        [*worker.services, _watch_service(worker), door_service(worker.doorkeeper)],
        address=worker.member.worker.address,
        health=health,
        max_receive_bytes=INTERNAL_MESSAGE_BYTES,
    )
    async with server, _registrar(worker) as registrar:
        address = replace(worker.member.worker, address=server.address)
        worker.doorkeeper.audience = audience_of(address)
        heartbeat = Heartbeat(registrar, replace(worker.member, worker=address), heard=worker.heard)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(each)
                for each in (
                    *worker.run,
                    follow_progress(health, worker.is_serving, is_moving=worker.is_moving),
                    _check_accounts(worker.check),
                )
            ]
            beating = group.create_task(heartbeat.run())
            await _either(heartbeat.registered, drain)  # its router may be away for long
            if not drain.is_set():
                await worker.settled()
                health.set_all(worker.is_serving())
                ready(
                    role=worker.member.role,
                    address=server.address,
                    worker_id=address.worker_id,
                    incarnation=address.incarnation,
                )
            await drain.wait()
            await _drain(worker, health)
            await server.stop()  # while what serves them still runs, and can give back
            for task in (beating, *tasks):
                task.cancel()
        await heartbeat.leave()


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
    """At a router, or in the Redis that several routers read."""
    if "://" in worker.router:
        store = SealedStore(RedisStore(worker.router), worker.secrets.cluster_token)
        try:
            yield StoreRegistrar(Membership(store))
        finally:
            await store.close()
    else:
        async with open_channel(worker.router, worker.secrets.cluster_token) as channel:
            yield RpcRegistrar(channel)


async def _drain(worker: WorkerProcess, health: HealthState) -> None:
    """NOT_SERVING at once; what is in progress may end."""
    worker.open_calls.is_draining = True
    health.set_all(False)
    worker.feed.report_now()
    try:
        async with asyncio.timeout(worker.drain_s):
            await worker.open_calls.none()
    except TimeoutError:
        num = worker.open_calls.num
        logger.warning("%d calls were still open after %.0f s", num, worker.drain_s)


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

    return service_handlers(
        "penstock.v1.Worker",
        {"Watch": watch, "Diagnose": worker.diagnosis.diagnose, **worker.rpcs},
        door=worker.doorkeeper,
        deadlines=UNBOUNDED,
    )


class WorkerSettings(Protocol):
    """What both workers' configurations say about who they are."""

    @property
    def checkpoint(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def worker_id(self) -> str: ...
    @property
    def address(self) -> str: ...
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
        address=settings.address,
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
