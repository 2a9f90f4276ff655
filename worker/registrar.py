"""The worker's side of membership: registering, and staying registered.

Through the router's RPC, or straight into a shared store. A router or a store that goes away
and comes back finds the worker registered again by itself.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Never, Protocol

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from cluster.channel import Channel
from cluster.errors import (
    DeadlineExceeded,
    FingerprintMismatch,
    InvalidRequest,
    PenstockError,
    UnsupportedFeature,
)
from cluster.lateness import Patience
from cluster.membership import DEFAULT_TTL_S, Membership
from cluster.types import Incarnation, Member, WorkerId
from cluster.worker_codec import member_from_pb, member_to_pb
from penstock.v1 import worker_pb2

logger = logging.getLogger(__name__)

_CLUSTER = "penstock.v1.Cluster"
_HEALTH = "grpc.health.v1.Health"
MIN_BACKOFF_S = 0.1
MAX_BACKOFF_S = 1.0


class Registrar(Protocol):
    """Is told by a worker that it is there."""

    async def register(self, member: Member, *, ttl_s: float) -> list[Member]:
        """Registers or renews, and returns all members. Repeated, it is the heartbeat."""
        ...

    async def deregister(self, worker_id: WorkerId, incarnation: Incarnation) -> None: ...

    async def follow(self, reconnected: Callable[[], None]) -> Never:
        """Calls `reconnected` whenever the other side is there anew: it may not know us."""
        ...


class RpcRegistrar:
    """Registers at a router."""

    def __init__(self, channel: Channel, *, timeout_s: float = 1.0) -> None:
        self._channel = channel
        self._timeout_s = timeout_s

    async def register(self, member: Member, *, ttl_s: float) -> list[Member]:
        # Waiting for the connection rather than failing: a router that comes back is told in
        # the moment it does.
        request = member_to_pb(member, ttl_s=ttl_s)
        response = await self._ask("Register", request, wait_for_ready=True)
        return _understood(response.members)

    async def deregister(self, worker_id: WorkerId, incarnation: Incarnation) -> None:
        request = worker_pb2.DeregisterRequest(worker_id=worker_id, incarnation=incarnation)
        await self._ask("Deregister", request)

    async def _ask(self, method: str, request: Message, *, wait_for_ready: bool = False) -> Any:
        try:
            async with Patience(self._timeout_s):
                return await self._channel.unary(
                    _CLUSTER, method, request, timeout_s=None, wait_for_ready=wait_for_ready
                )
        except TimeoutError:
            raise DeadlineExceeded(method) from None

    async def follow(self, reconnected: Callable[[], None]) -> Never:
        # A health watch is a stream that lives as long as the connection does.
        # NOTE: not the channel's own `wait_for_state_change`, which must never be cancelled.
        while True:
            try:
                await self._follow_health(reconnected)
            except UnsupportedFeature:
                logger.info("no health here: only heartbeats will notice that the router restarts")
                await asyncio.Event().wait()
            except PenstockError as error:
                logger.debug("the router is away: %s", error)
            await asyncio.sleep(MIN_BACKOFF_S)

    async def _follow_health(self, reconnected: Callable[[], None]) -> None:
        """One connection, awaited if need be."""
        request = health_pb2.HealthCheckRequest()
        async with self._channel.stream(
            _HEALTH, "Watch", request, timeout_s=None, wait_for_ready=True
        ) as watch:
            if await watch.receive() is not None:
                reconnected()
            async for _ in watch:
                pass


class StoreRegistrar:
    """Registers in a store that the routers read."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership

    async def register(self, member: Member, *, ttl_s: float) -> list[Member]:
        return await self._membership.join(member, ttl_s=ttl_s)

    async def deregister(self, worker_id: WorkerId, incarnation: Incarnation) -> None:
        await self._membership.leave(worker_id, incarnation)

    async def follow(self, reconnected: Callable[[], None]) -> Never:
        await asyncio.Event().wait()  # a store forgets only by time
        raise AssertionError("nobody sets it")


class Heartbeat:
    """Keeps one worker registered; `run` belongs in the worker's TaskGroup."""

    def __init__(
        self,
        registrar: Registrar,
        member: Member,
        *,
        interval_s: float = 1.0,
        ttl_s: float = DEFAULT_TTL_S,
        heard: Callable[[Member, Sequence[Member]], None] | None = None,
    ) -> None:
        """`heard` is told who we are and who is there, after each success."""
        self._registrar = registrar
        self._member = member
        self._heard = heard
        self._interval_s = interval_s
        self._ttl_s = ttl_s
        self._is_due = asyncio.Event()
        self.registered = asyncio.Event()  # set by the first success
        self.members: list[Member] = []  # as of the last success
        self.num_failures = 0  # since then

    async def run(self) -> Never:
        """Registers until cancelled; retries whatever fails, 0.1 s to 1 s apart.

        Raises:
            FingerprintMismatch: before the first success only. Later it is logged: a worker
                that serves is not ended because a stranger came first to a new router.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._beat())
                tasks.create_task(self._registrar.follow(self._is_due.set))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        raise AssertionError("neither task ends by itself")

    async def _beat(self) -> Never:
        backoff_s = MIN_BACKOFF_S
        while True:
            self._is_due.clear()
            try:
                self.members = await self._registrar.register(self._member, ttl_s=self._ttl_s)
            except PenstockError as error:
                self._bear(error)
                # Who has waited for an answer in vain has waited enough.
                await asyncio.sleep(0 if isinstance(error, DeadlineExceeded) else backoff_s)
                backoff_s = min(MAX_BACKOFF_S, 2 * backoff_s)
            else:
                self._count_success()
                backoff_s = MIN_BACKOFF_S
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._interval_s):
                        await self._is_due.wait()

    async def leave(self) -> None:
        """Says goodbye, if anyone listens: the record lapses anyway. Call it after `run`."""
        try:
            await self._registrar.deregister(
                self._member.worker.worker_id, self._member.worker.incarnation
            )
        except PenstockError as error:
            logger.info("not deregistered: %s", error)

    def _bear(self, error: PenstockError) -> None:
        """Counts what may pass by itself; raises what will not."""
        if isinstance(error, FingerprintMismatch) and not self.registered.is_set():
            raise error
        if self.num_failures == 0:
            logger.warning("not registered, trying on: %s", error)
        self.num_failures += 1

    def _count_success(self) -> None:
        if self.num_failures or not self.registered.is_set():
            logger.info("registered, %d members", len(self.members))
        self.num_failures = 0
        self.registered.set()
        if self._heard is not None:
            self._heard(self._member, self.members)


def _understood(messages: Iterable[worker_pb2.RegisterRequest]) -> list[Member]:
    """Leaves out members of which a later release says what this one does not know."""
    members = []
    for message in messages:
        try:
            members.append(member_from_pb(message))
        except InvalidRequest as error:
            logger.debug("'%s' is passed over: %s", message.worker.worker_id, error)
    return members
