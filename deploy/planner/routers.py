"""Asks for what all routers of a cluster know together, and tells workers through them."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from cluster.authority import Credentials
from cluster.channel import Channel, open_channel
from cluster.codec import load_report_from_pb
from cluster.errors import InvalidRequest, PenstockError, WorkerLost
from cluster.secrets import Secrets
from cluster.worker_codec import member_from_pb
from penstock.v1 import worker_pb2
from router.learned.traffic import Arrival
from router.pool import MemberStatus
from router.status_codec import arrival_from_pb

_CLUSTER: Final = "penstock.v1.Cluster"
_ANSWER_S: Final = 3.0


class Seen(NamedTuple):
    """Times are of this process's clock."""

    arrivals: tuple[Arrival, ...]
    workers: Mapping[str, MemberStatus]  # by name, as the router that heard from it last says
    num_waiting: int
    began_s: float  # since when no router has forgotten anything


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Says how routers are asked."""

    window_s: float
    next_s: float  # it will be asked again by then
    start_s: float = 0.0  # so long requests may wait for a worker that is started; 0: none is


class RouterConnections:
    """`async with` keeps a connection to each that it was told of last."""

    def __init__(self, secrets: Secrets) -> None:
        self._token = secrets.cluster_token
        self._credentials = Credentials(secrets.authority)
        self._channels: dict[str, Channel] = {}  # by address

    async def observe(self, addresses: Sequence[str], question: Question, now_s: float) -> Seen:
        """All at once. Raises PenstockError where one does not answer: what it knows is not
        known to be nothing."""
        request = worker_pb2.ObserveRequest(
            window_seconds=question.window_s,
            next_seconds=question.next_s,
            start_seconds=question.start_s,
        )
        for address in self._channels.keys() - set(addresses):
            await self._close(address)
        asked = (self._ask(address, "Observe", request) for address in addresses)
        replies = await asyncio.gather(*asked)
        return merged(replies, now_s)

    async def drain(
        self, addresses: Sequence[str], worker: str, limit_s: float, *, is_last: bool
    ) -> None:
        """Raises PenstockError."""
        request = worker_pb2.DrainRequest(worker_id=worker, limit_seconds=limit_s, force=is_last)
        await self._tell(addresses, "Drain", request)

    async def undrain(self, addresses: Sequence[str], worker: str) -> None:
        await self._tell(addresses, "Undrain", worker_pb2.UndrainRequest(worker_id=worker))

    async def _tell(self, addresses: Sequence[str], method: str, request: Any) -> None:
        """Tells the worker through the first router that reaches it."""
        for address in addresses:
            try:
                await self._ask(address, method, request)
                return
            except PenstockError:
                if address == addresses[-1]:
                    raise
        raise WorkerLost("No router serves.")

    async def _ask(self, address: str, method: str, request: Any) -> Any:
        channel = self._channels.get(address)
        if channel is None:
            channel = open_channel(address, self._token, credentials=self._credentials)
            self._channels[address] = channel
        try:
            return await channel.unary(_CLUSTER, method, request, timeout_s=_ANSWER_S)
        except InvalidRequest:  # it is there
            raise
        except PenstockError:  # a connection to who is gone may stand for long
            await self._close(address)
            raise

    async def _close(self, address: str) -> None:
        if (channel := self._channels.pop(address, None)) is not None:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for address in list(self._channels):
            await self._close(address)


def merged(replies: Sequence[worker_pb2.ObserveResponse], now_s: float) -> Seen:
    workers: dict[str, MemberStatus] = {}
    for reply in replies:
        for each in reply.workers:
            status = _status(each)
            name = status.member.worker.worker_id
            known = workers.get(name)
            workers[name] = status if known is None else _later(known, status)
    return Seen(
        arrivals=tuple(
            arrival_from_pb(each, now_s) for reply in replies for each in reply.requests
        ),
        workers=workers,
        num_waiting=sum(reply.waiting for reply in replies),
        # One that began later has forgotten, or never heard, what came before.
        began_s=now_s - min((reply.watched_seconds for reply in replies), default=0.0),
    )


def _later(one: MemberStatus, other: MemberStatus) -> MemberStatus:
    """Gives the status of the newer life, as it was heard last; in flight there is what both have
    sent."""
    latest = max(
        (one, other),
        key=lambda each: (
            each.member.worker.incarnation,
            each.report_age_s is not None,
            -(each.report_age_s or 0.0),
        ),
    )
    return replace(latest, num_in_flight=one.num_in_flight + other.num_in_flight)


def _status(message: worker_pb2.WorkerStatus) -> MemberStatus:
    return MemberStatus(
        member=member_from_pb(message.member),
        report=load_report_from_pb(message.load),
        report_age_s=message.report_age_seconds or None,
        refusal=None if message.serving else message.reason,
        num_in_flight=message.requests_in_flight,
    )
