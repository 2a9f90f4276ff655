"""A worker stays registered through whatever happens to routers and stores."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from cluster.channel import open_channel
from cluster.door import door_service
from cluster.errors import FingerprintMismatch, PenstockError, StoreUnavailable
from cluster.health import HealthState
from cluster.membership import Membership
from cluster.proof import Doorkeeper
from cluster.redis_store import RedisStore
from cluster.rpc import Call, Server, service_handlers
from cluster.store import MemoryStore
from cluster.types import Incarnation, Member, WorkerId
from cluster.worker_codec import member_from_pb, member_to_pb
from penstock.v1 import worker_pb2
from tests.cluster.cluster_samples import FINGERPRINT, member
from tests.redis_server import free_port, redis_server
from worker.registrar import Heartbeat, Registrar, RpcRegistrar, StoreRegistrar

TOKEN = "the-token"


class Router:
    """What a router's Cluster service does, and the number of registrations it has seen."""

    def __init__(self, address: str = "127.0.0.1:0") -> None:
        self.membership = Membership(MemoryStore())
        self.registered: asyncio.Queue[Member] = asyncio.Queue()
        handlers = {"Register": self._register, "Deregister": self._deregister}
        door = Doorkeeper(TOKEN)
        self.services = [
            service_handlers("penstock.v1.Cluster", handlers, door=door),
            door_service(door),
        ]
        self.server = Server(self.services, address=address, health=HealthState())

    async def _register(self, request: Any, call: Call) -> worker_pb2.RegisterResponse:
        joined = member_from_pb(request)
        members = await self.membership.join(joined, ttl_s=request.ttl_seconds)
        self.registered.put_nowait(joined)
        return worker_pb2.RegisterResponse(members=[member_to_pb(m) for m in members])

    async def _deregister(self, request: Any, call: Call) -> worker_pb2.DeregisterResponse:
        await self.membership.leave(WorkerId(request.worker_id), Incarnation(request.incarnation))
        return worker_pb2.DeregisterResponse()


class Recorded:
    """A registrar whose outcomes can be waited for: None, or the error."""

    def __init__(self, registrar: Registrar) -> None:
        self._registrar = registrar
        self.outcomes: asyncio.Queue[PenstockError | None] = asyncio.Queue()
        self.deregister = registrar.deregister
        self.follow = registrar.follow

    async def register(self, one: Member, *, ttl_s: float) -> list[Member]:
        try:
            members = await self._registrar.register(one, ttl_s=ttl_s)
        except PenstockError as error:
            self.outcomes.put_nowait(error)
            raise
        self.outcomes.put_nowait(None)
        return members

    async def failure(self) -> PenstockError:
        while (outcome := await self.outcomes.get()) is None:
            pass
        return outcome

    async def success(self) -> None:
        while await self.outcomes.get() is not None:
            pass


@asynccontextmanager
async def beating(registrar: Registrar, one: Member, interval_s: float) -> AsyncIterator[Heartbeat]:
    heartbeat = Heartbeat(registrar, one, interval_s=interval_s)
    task = asyncio.create_task(heartbeat.run())
    try:
        yield heartbeat
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_worker_is_registered_at_the_router_and_knows_the_others():
    router = Router()
    await router.membership.join(member("p0"))
    async with router.server, open_channel(router.server.address, TOKEN) as channel:
        async with beating(RpcRegistrar(channel), member(), 60) as heartbeat:
            async with asyncio.timeout(5):
                await heartbeat.registered.wait()
        assert heartbeat.members == [member(), member("p0")]
        await heartbeat.leave()  # it beats no more, and cannot register once again
        assert await router.membership.members() == [member("p0")]


async def test_the_registration_is_renewed():
    router = Router()
    async with (
        router.server,
        open_channel(router.server.address, TOKEN) as channel,
        beating(RpcRegistrar(channel), member(), 0.01),
        asyncio.timeout(5),
    ):
        for _ in range(3):
            await router.registered.get()


@pytest.mark.slow
async def test_a_router_that_restarts_is_told_at_once_not_at_the_next_heartbeat():
    router = Router()
    await router.server.start()
    address = router.server.address
    async with (
        open_channel(address, TOKEN) as channel,
        beating(RpcRegistrar(channel), member(), 3600),
        asyncio.timeout(10),
    ):
        await router.registered.get()
        await router.server.stop()
        restarted = Router(address)
        async with restarted.server:
            assert await restarted.registered.get() == member()


async def test_a_router_without_health_is_told_by_the_clock_only():
    router = Router()
    router.server = Server(router.services)
    async with (
        router.server,
        open_channel(router.server.address, TOKEN) as channel,
        beating(RpcRegistrar(channel), member(), 0.01),
        asyncio.timeout(5),
    ):
        for _ in range(3):
            await router.registered.get()


async def test_a_worker_may_start_before_its_router():
    port = free_port()
    async with open_channel(f"127.0.0.1:{port}", TOKEN) as channel, asyncio.timeout(10):
        registrar = Recorded(RpcRegistrar(channel, timeout_s=0.05))
        async with beating(registrar, member(), 60) as heartbeat:
            await registrar.failure()
            async with Router(f"127.0.0.1:{port}").server:
                await heartbeat.registered.wait()


@pytest.mark.slow
async def test_a_worker_that_was_away_hears_that_it_is_registered():
    router = Router()
    async with router.server, open_channel(router.server.address, TOKEN) as channel:
        registrar = RpcRegistrar(channel, timeout_s=0.5)
        await registrar.register(member(), ttl_s=3.0)
        registering = asyncio.create_task(registrar.register(member(), ttl_s=3.0))
        await asyncio.sleep(0)  # it is on its way
        time.sleep(0.8)  # noqa: ASYNC251 - as SIGSTOP does
        assert await registering == [member()]


async def test_a_worker_that_does_not_fit_ends_before_it_serves():
    router = Router()
    await router.membership.join(member("p0"))
    wrong = member(fingerprint=replace(FINGERPRINT, model_digest="x"))
    async with router.server, open_channel(router.server.address, TOKEN) as channel:
        with pytest.raises(FingerprintMismatch, match="model_digest: x and model"):
            await Heartbeat(RpcRegistrar(channel), wrong).run()


async def test_a_worker_that_serves_goes_on_when_strangers_came_first_to_a_new_router():
    class Refusing:
        """Accepts once, refuses then."""

        def __init__(self) -> None:
            self.refused = asyncio.Event()
            self.num_calls = 0

        async def register(self, one: Member, *, ttl_s: float) -> list[Member]:
            self.num_calls += 1
            if self.num_calls > 1:
                self.refused.set()
                raise FingerprintMismatch("They differ.")
            return [one]

        async def deregister(self, worker_id: WorkerId, incarnation: Incarnation) -> None: ...

        async def follow(self, reconnected: Callable[[], None]) -> None:
            await asyncio.Event().wait()

    registrar = Refusing()
    async with beating(registrar, member(), 0.01) as heartbeat, asyncio.timeout(5):
        await registrar.refused.wait()
        assert heartbeat.registered.is_set()


async def test_a_store_that_restarts_empty_finds_the_worker_in_it_again():
    port = free_port()
    store = RedisStore(f"redis://127.0.0.1:{port}/0", timeout_s=0.2)
    membership = Membership(store)
    registrar = Recorded(StoreRegistrar(membership))
    async with beating(registrar, member(), 0.02) as heartbeat, asyncio.timeout(10):
        async with redis_server(port):
            await registrar.success()
            assert await membership.members() == [member()]
        assert isinstance(await registrar.failure(), StoreUnavailable)
        async with redis_server(port):
            await registrar.success()
            assert await membership.members() == [member()]
            await heartbeat.leave()
    await store.close()


async def test_leaving_a_router_that_is_gone_is_no_error():
    async with open_channel(f"127.0.0.1:{free_port()}", TOKEN) as channel:
        await Heartbeat(RpcRegistrar(channel), member()).leave()
