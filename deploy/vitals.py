"""Whether a process answers, and says that it serves: grpc.health.v1, asked once a second.

A stopped process answers nothing, a wedged one answers NOT_SERVING; either is frozen when it
lasts. A router without workers is NOT_SERVING and well, so only silence counts against it.
"""

import asyncio
import logging
import time
from collections.abc import Collection

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.channel import Channel, open_channel
from deploy.child import Child
from deploy.plan import Part
from penstock.v1 import worker_pb2

logger = logging.getLogger(__name__)

CHANNEL_OPTIONS = [("grpc.enable_http_proxy", 0)]
SERVING = health_pb2.HealthCheckResponse.SERVING


async def _is_well(stub: health_pb2_grpc.HealthStub, part: Part, timeout_s: float) -> bool:
    try:
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
    except grpc.aio.AioRpcError:
        return False
    return part is Part.ROUTER or answer.status == SERVING


async def until_frozen(child: Child, *, frozen_after_s: float) -> None:
    """Returns when a process was unwell for so long; cancelled when it ends first."""
    interval_s = min(1.0, frozen_after_s / 4)
    async with grpc.aio.insecure_channel(child.address, CHANNEL_OPTIONS) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        well_at = time.monotonic()
        while time.monotonic() - well_at < frozen_after_s:
            if await _is_well(stub, child.plan.part, interval_s):
                well_at = time.monotonic()
            await asyncio.sleep(interval_s)


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
        timeout_s=5.0,
        wait_for_ready=True,
    )
    return {worker.member.worker.worker_id for worker in reply.workers if worker.serving}
