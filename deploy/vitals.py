"""Asks whether a process answers, and says that it is well: grpc.health.v1, one question at a time.

A router without workers is NOT_SERVING and well, so is a worker that drains: only one whose steps
do not end is wedged by its own word.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from enum import StrEnum
from pathlib import Path
from typing import Never

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.addresses import is_loopback_address
from cluster.authority import Credentials
from cluster.channel import Channel, channel_options, open_channel
from cluster.health import PROGRESS
from cluster.secrets import Secrets, load_secrets
from cluster.tls import secure_channel
from deploy.plan import Part
from penstock.v1 import worker_pb2

logger = logging.getLogger(__name__)

Enough = Callable[[set[str], set[str]], bool]  # of workers: those that serve; those that drain
SERVING = health_pb2.HealthCheckResponse.SERVING
ANSWER_S = 10.0  # then the question is asked again, in case it was lost
# Of one that was well: a question costs both ends a millisecond, and /proc shows a stopped one.
CALM_S = 1.0


class Health(StrEnum):
    WELL = "well"
    WEDGED = "wedged by its own word"
    SILENT = "silent"
    STARTING = "not asked yet"


class Pulse:
    """The last answer of a process. An answer may come late: it counts when it has come."""

    def __init__(self, channel: grpc.aio.Channel, part: Part, interval_s: float) -> None:
        self._stub = health_pb2_grpc.HealthStub(channel)
        self._part = part
        self._interval_s = interval_s
        self._last = Health.WELL
        self._asked_at: float | None = None  # what is not answered yet

    @property
    def answer(self) -> Health:
        if self._asked_at is None or time.monotonic() - self._asked_at < self._interval_s:
            return self._last
        return Health.SILENT

    async def follow(self) -> Never:
        """Asks until cancelled."""
        while True:
            self._asked_at = self._asked_at or time.monotonic()
            try:
                self._last = await self._ask()
                self._asked_at = None
            except grpc.aio.AioRpcError as error:
                logger.debug("no answer: %s", error.details())
            is_well = self._asked_at is None and self._last is Health.WELL
            await asyncio.sleep(CALM_S if is_well else self._interval_s)

    async def _ask(self) -> Health:
        if await self._serves("") or not self._part.is_worker:
            return Health.WELL
        return Health.WELL if await self._serves(PROGRESS) else Health.WEDGED

    async def _serves(self, service: str) -> bool:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            answer = await self._stub.Check(request, timeout=ANSWER_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return False
            raise
        return bool(answer.status == SERVING)


def health_channel(address: str, secrets_file: Path | None) -> grpc.aio.Channel:
    """Opens a channel as others dial it: beyond loopback with what the secrets are good for."""
    if secrets_file is None or is_loopback_address(address):
        return secure_channel(address, None, channel_options())
    credentials = Credentials(load_secrets(secrets_file).authority)
    return secure_channel(address, credentials.at(address), channel_options())


def all_of(names: Collection[str]) -> Enough:
    """Each of these workers serves, or drains because somebody said so."""
    wanted = set(names)
    return lambda serving, draining: wanted <= serving | draining


async def until_serving(router: str, secrets: Secrets, is_enough: Enough) -> None:
    """Returns when it holds of the workers that the router would send requests to, and of those
    that drain."""
    async with _channel(router, secrets) as channel:
        while not is_enough(*(found := await _serving(channel))):
            logger.debug("only %s serve yet", ", ".join(sorted(found[0])) or "none")
            await asyncio.sleep(0.05)  # only while starting: there is no event to wait for


async def serving(router: str, secrets: Secrets) -> set[str]:
    """The workers that the router would send requests to."""
    async with _channel(router, secrets) as channel:
        found, _ = await _serving(channel)
        return found


def _channel(router: str, secrets: Secrets) -> Channel:
    return open_channel(router, secrets.cluster_token, credentials=Credentials(secrets.authority))


async def _serving(channel: Channel) -> tuple[set[str], set[str]]:
    """Finds who serves, and who drains."""
    reply: worker_pb2.StatusResponse = await channel.unary(
        "penstock.v1.Cluster",
        "Status",
        worker_pb2.StatusRequest(),
        timeout_s=None,  # whoever calls has a limit for all of it
        wait_for_ready=True,
    )
    names = [(worker.member.worker.worker_id, worker) for worker in reply.workers]
    serving = {name for name, worker in names if worker.serving}
    return serving, {name for name, worker in names if worker.load.draining}
