"""Pools in GPU memory: engine, digest, and bytes on their way. The transports' contract runs over
them in `test_transport_contract.py`; `pytest -m gpu tests/engine tests/kv_transfer` is all."""

import asyncio
from contextlib import closing

import numpy as np
import pytest
import torch

from cluster.errors import ConfigError
from cluster.measurements import Measurements
from cluster.types import Incarnation
from engine.build import plan_engine
from engine.config import EngineConfig
from engine.engine import Engine
from kv_transfer.device_pool import DevicePool
from kv_transfer.doors import DoorSettings, open_doors
from kv_transfer.geometry import SpanPairs, Spans
from tests.checkpoints import checkpoint
from tests.engine.driver import Driver, make_sequence
from tests.engine.greedy import draw_prompts

pytestmark = pytest.mark.gpu

SETTINGS = DoorSettings(key=b"of the cluster")


def test_an_engine_over_a_pool_gives_the_tokens_of_one_without() -> None:
    config = EngineConfig(
        kind="torch",
        checkpoint=checkpoint("llama"),
        num_blocks=128,
        block_size=16,
        num_threads=1,
        device="cuda",
    )
    plan = plan_engine(config)
    pool = DevicePool(Incarnation("us"), plan.layout.pool_bytes, "cuda")
    prompts = draw_prompts(1, 6)
    outputs = []
    for buffer in (pool.buffer, torch.zeros_like(pool.buffer)):
        engine = plan.build(buffer, Measurements())
        assert isinstance(engine, Engine)
        driver = Driver(engine, budget=32, seed=3)
        outputs.append(driver.run([make_sequence(prompt, max_tokens=12) for prompt in prompts]))
    assert outputs[0] == outputs[1]
    assert pool.buffer.any()


def test_a_digest_is_that_of_the_same_bytes_on_the_host() -> None:
    pools = [DevicePool(Incarnation("us"), 8 << 20, device) for device in ("cuda", "cpu")]
    pools[1].buffer.copy_(torch.randint(0, 255, (8 << 20,), dtype=torch.uint8), Measurements())
    pools[0].buffer.copy_(pools[1].buffer)
    torch.cuda.synchronize()
    offsets = np.random.default_rng(0).permutation(4096) * 2048
    spans = Spans(offsets=offsets, sizes=np.full(4096, 2048))
    assert pools[0].digester()(spans) == pools[1].digester()(spans)


async def test_bytes_go_from_a_gpu_to_a_host_by_gloo() -> None:
    ours = DevicePool(Incarnation("ours"), 8 << 20, "cuda")
    theirs = DevicePool(Incarnation("theirs"), 8 << 20, "cpu")
    ours.buffer.copy_(torch.randint(0, 255, (8 << 20,), dtype=torch.uint8), Measurements())
    torch.cuda.synchronize()
    [writer], [receiver] = (open_doors(["gloo"], pool, SETTINGS) for pool in (ours, theirs))
    with closing(writer), closing(receiver):
        peer = await writer.connect(receiver.address)
        (await receiver.connect(writer.address)).admit(1, lambda spans: True)
        order = np.random.default_rng(0).permutation(4096) * 2048
        pairs = SpanPairs(
            source=np.arange(4096) * 2048, destination=order, sizes=np.full(4096, 2048)
        )
        landed = await asyncio.wrap_future(
            peer.write(pairs, epoch=1, digest=True, may_start=lambda: True)
        )
    assert landed.digest == theirs.digester()(Spans(offsets=order, sizes=pairs.sizes))
    rows = theirs.buffer.view(4096, 2048)
    assert torch.equal(rows[torch.from_numpy(order // 2048)], ours.buffer.cpu().view(4096, 2048))


def test_a_pool_that_does_not_fit_is_refused_with_a_remedy() -> None:
    with pytest.raises(ConfigError, match="num_blocks"):
        DevicePool(Incarnation("us"), 1 << 50, "cuda")
    for door in ("shared_memory", "tcp", "nixl"):
        with pytest.raises(ConfigError, match="nccl"):
            open_doors([door], DevicePool(Incarnation("us"), 4096, "cuda"), SETTINGS)
