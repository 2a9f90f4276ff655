"""The router as a process: start, refusal to start, drain, and what it weighs."""

import asyncio
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.types import GrainHash
from penstock.v1 import inference_pb2 as pb
from penstock.v1 import inference_pb2_grpc
from tests.router.fake_worker import FakeWorker
from tests.router.router_process import ROOT, fingerprint, router_process, start, write_config

pytestmark = pytest.mark.slow

MAX_RESIDENT_BYTES = 250 << 20


async def test_a_router_starts_serves_and_drains(checkpoint: Path, tmp_path: Path) -> None:
    async with router_process(write_config(tmp_path, checkpoint)) as router:
        assert router.ready["ready"] is True
        assert router.ready["role"] == "router"
        async with grpc.aio.insecure_channel(router.address) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            response = await stub.GetModel(pb.GetModelRequest())  # type: ignore[misc]
            assert response.model.name == "echo"
        router.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            assert await router.process.wait() == 0


async def test_a_wrong_configuration_is_a_sentence_and_exit_code_2(
    checkpoint: Path, tmp_path: Path
) -> None:
    process = await start(write_config(tmp_path, checkpoint, hash_grian=16))
    _, errors = await process.communicate()
    assert process.returncode == 2
    last = errors.decode().strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "hash_grain" in last


def test_the_router_loads_no_torch() -> None:
    code = (
        "import sys, router.front.service, router.__main__;"
        "print([m for m in ('torch', 'transformers', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout.decode().strip() == "[]"


@pytest.mark.prove
async def test_a_router_with_a_full_index_stays_small(checkpoint: Path, tmp_path: Path) -> None:
    """A snapshot beyond the index's budget, then a thousand requests."""
    async with router_process(write_config(tmp_path, checkpoint)) as router:
        idle_bytes = router.resident_bytes
        worker = FakeWorker("d0", router.address, fingerprint(checkpoint), "echo")
        worker.stores(*(GrainHash(secrets.token_bytes(16)) for _ in range(500_000)))
        async with worker, grpc.aio.insecure_channel(router.address) as channel:
            await _serving(channel)
            for _ in range(20):
                await asyncio.gather(*(_answer(channel) for _ in range(50)))
            full_bytes = router.resident_bytes
    print(f"resident: {idle_bytes >> 20} MiB idle, {full_bytes >> 20} MiB full")
    assert idle_bytes < full_bytes < MAX_RESIDENT_BYTES


async def _serving(channel: grpc.aio.Channel) -> None:
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    async with asyncio.timeout(30):
        while (await watch.read()).status != health_pb2.HealthCheckResponse.SERVING:
            pass
    watch.cancel()


async def _answer(channel: grpc.aio.Channel) -> None:
    stub = inference_pb2_grpc.InferenceStub(channel)
    request = pb.GenerateRequest(text="What does the router know?")
    messages = [message async for message in stub.Generate(request)]
    assert messages[-1].HasField("finished")
