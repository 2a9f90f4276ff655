"""Whether a process answers, and says that it serves: grpc.health.v1, asked once a second.

A stopped process answers nothing, a wedged one answers NOT_SERVING; either is frozen when it
lasts. A router without workers is NOT_SERVING and well, so only silence counts against it.
"""

import asyncio
import time

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.child import Child
from deploy.plan import Part

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


async def until_serving(address: str) -> None:
    """Returns when the process at `address` serves."""
    async with grpc.aio.insecure_channel(address, CHANNEL_OPTIONS) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        async for answer in stub.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True):
            if answer.status == SERVING:
                return
