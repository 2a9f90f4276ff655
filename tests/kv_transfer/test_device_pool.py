"""Pools in tensors: the same bytes, the same digests, the same tokens as in a file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ConfigError
from cluster.measurements import Measurements
from cluster.types import Incarnation
from engine.build import plan_engine
from engine.config import EngineConfig
from engine.engine import Engine
from kv_transfer.device_pool import DevicePool, tensor_of
from kv_transfer.geometry import Spans
from kv_transfer.pool import FilePool, PoolConfig
from kv_transfer.staging import Stage, gather, scatter, stagefuls
from tests.checkpoints import checkpoint
from tests.engine.driver import Driver, make_sequence
from tests.engine.greedy import draw_prompts

NUM_BYTES = 1 << 20


def spans_of(*spans: tuple[int, int]) -> Spans:
    offsets, sizes = np.array(spans, dtype=np.int64).T
    return Spans(offsets=offsets, sizes=sizes)


@pytest.mark.parametrize(
    "spans",
    [
        [(0, NUM_BYTES)],
        [(64 * (i * 7919 % 10_000), 64) for i in range(10_000)],
        [(7 * i + 1, 3) for i in range(999)],
        [(5, 300_000), (400_000, 1), (700_001, 200_000)],
    ],
)
def test_a_digest_is_that_of_a_pool_file(tmp_path: Path, spans: list[tuple[int, int]]) -> None:
    config = PoolConfig(incarnation=Incarnation("us"), num_bytes=NUM_BYTES, run_dir=tmp_path)
    file_pool, pool = FilePool(config), DevicePool(config.incarnation, NUM_BYTES, "cpu")
    tensor_of(file_pool)[:] = torch.randint(0, 255, (NUM_BYTES,), dtype=torch.uint8)
    pool.buffer.copy_(tensor_of(file_pool))
    digest = pool.digester()
    assert digest(spans_of(*spans)) == file_pool.digester()(spans_of(*spans))
    pool.buffer[spans[-1][0]] += 1
    assert digest(spans_of(*spans)) != file_pool.digester()(spans_of(*spans))
    file_pool.close()


disjoint = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 90)), min_size=1, max_size=40)


@pytest.mark.slow
@given(disjoint, st.integers(1, 200), st.randoms())
def test_stagefuls_are_the_spans_in_order(steps, stage_bytes, random) -> None:
    starts = np.cumsum([gap + size for gap, size in steps])
    spans = [(int(end) - size, size) for end, (_, size) in zip(starts, steps, strict=True)]
    random.shuffle(spans)
    some = list(stagefuls(spans_of(*spans), stage_bytes))
    assert [one.num_bytes for one in some[:-1]] == [stage_bytes] * (len(some) - 1)
    assert 0 < some[-1].num_bytes <= stage_bytes
    expected = [offset + i for offset, size in spans for i in range(size)]
    assert expected == [offset + i for one in some for offset, size in one for i in range(size)]

    pool = torch.arange(10_000, dtype=torch.int32).to(torch.uint8)
    back, done = torch.zeros_like(pool), 0
    run = torch.zeros(stage_bytes, dtype=torch.uint8)
    stage = Stage(pool, pool.device, stage_bytes)
    for one in some:
        gather(pool, one, run)
        wanted = pool[expected[done : done + one.num_bytes]]
        assert torch.equal(run[: one.num_bytes], wanted)
        assert torch.equal(stage.gather(one), wanted), "the same without torch"
        scatter(run, one, back)
        done += one.num_bytes
    assert torch.equal(back[expected], pool[expected])
    assert int(torch.count_nonzero(back)) == int(torch.count_nonzero(pool[expected]))


@pytest.mark.slow
def test_an_engine_over_a_pool_in_a_tensor_gives_the_same_tokens() -> None:
    config = EngineConfig(
        kind="torch", checkpoint=checkpoint("llama"), num_blocks=128, block_size=16, num_threads=1
    )
    plan = plan_engine(config)
    pool = DevicePool(Incarnation("us"), plan.layout.pool_bytes, "cpu")
    prompts = draw_prompts(1, 6)
    outputs = []
    for buffer in (pool.buffer, memoryview(bytearray(plan.layout.pool_bytes))):
        engine = plan.build(buffer, Measurements())
        assert isinstance(engine, Engine)
        driver = Driver(engine, budget=32, seed=3)
        outputs.append(driver.run([make_sequence(prompt, max_tokens=12) for prompt in prompts]))
    assert outputs[0] == outputs[1]
    assert pool.buffer.any(), "the cache lies in it"


def test_the_echo_engine_wants_host_memory() -> None:
    config = EngineConfig(
        kind="echo", checkpoint=Path(), num_blocks=8, block_size=16, num_threads=1
    )
    plan = plan_engine(config)
    with pytest.raises(ConfigError, match="'device' to 'cpu'"):
        plan.build(torch.zeros(plan.layout.pool_bytes, dtype=torch.uint8), Measurements())


def test_a_cache_refuses_a_pool_that_is_not_its_own() -> None:
    config = EngineConfig(
        kind="torch", checkpoint=checkpoint("llama"), num_blocks=8, block_size=16, num_threads=1
    )
    plan = plan_engine(config)
    with pytest.raises(ValueError, match="bytes"):
        plan.build(torch.zeros(100, dtype=torch.uint8), Measurements())
    elsewhere = torch.zeros(plan.layout.pool_bytes, dtype=torch.uint8, device="meta")
    with pytest.raises(ValueError, match="meta"):
        plan.build(elsewhere, Measurements())
