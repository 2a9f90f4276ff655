"""Whether a process answers, and says that it is well: grpc.health.v1, one question at a time.

A router without workers is NOT_SERVING and well, so is a worker that drains: only one whose steps
do not end is wedged by its own word.
"""

import asyncio
import logging
import time
from collections.abc import Collection
from enum import StrEnum
from typing import Never

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.channel import Channel, channel_options, open_channel
from cluster.health import PROGRESS
from deploy.plan import Part
from penstock.v1 import worker_pb2

logger = logging.getLogger(__name__)

SERVING = health_pb2.HealthCheckResponse.SERVING
ANSWER_S = 10.0  # then the question is asked again, in case it was lost


class Answer(StrEnum):
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
        self._last = Answer.WELL
        self._asked_at: float | None = None  # what is not answered yet

    @property
    def answer(self) -> Answer:
        if self._asked_at is None or time.monotonic() - self._asked_at < self._interval_s:
            return self._last
        return Answer.SILENT

    async def follow(self) -> Never:
        """Asks until cancelled."""
        while True:
            self._asked_at = self._asked_at or time.monotonic()
            try:
                self._last = await self._ask()
                self._asked_at = None
            except grpc.aio.AioRpcError as error:
                logger.debug("no answer: %s", error.details())
            await asyncio.sleep(self._interval_s)

    async def _ask(self) -> Answer:
        if await self._serves("") or self._part is Part.ROUTER:
            return Answer.WELL
        return Answer.WELL if await self._serves(PROGRESS) else Answer.WEDGED

    async def _serves(self, service: str) -> bool:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            answer = await self._stub.Check(request, timeout=ANSWER_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return False
            raise
        return bool(answer.status == SERVING)


def health_channel(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, channel_options())


async def until_all_serve(router: str, token: str, names: Collection[str]) -> None:
    """Returns when the router would send requests to each of these workers."""
    async with open_channel(router, token) as channel:
        while missing := set(names) - await _serving(channel):
            logger.debug("%s does not serve yet", ", ".join(sorted(missing)))
            await asyncio.sleep(0.05)  # only while starting: there is no event to wait for


async def _serving(channel: Channel) -> set[str]:
    reply: worker_pb2.StatusResponse = await channel.unary(
        "penstock.v1.Cluster",
        "Status",
        worker_pb2.StatusRequest(),
        timeout_s=None,  # whoever calls has a limit for all of it
        wait_for_ready=True,
    )
    return {worker.member.worker.worker_id for worker in reply.workers if worker.serving}
