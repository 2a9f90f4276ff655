"""Workers of one model whose pools are not alike give the reference's tokens: what a sliding
window hides does not travel, and what widens loses nothing. Where the receiver allows a loss,
the answer keeps within a bound, and no other request sees what was lost."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.types import KvLayout
from engine.checkpoint import load_spec
from engine.config import EngineConfig
from engine.engine import Engine
from tests.checkpoints import VOCAB_SIZE, checkpoint, reference_greedy
from tests.workers.decoding import decode
from tests.workers.fetching import counted, ids, named, request
from tests.workers.local_cluster import LocalCluster, Running

torch.set_num_threads(1)

PROMPT = [2 + (i * i + 7 * i) % (VOCAB_SIZE - 2) for i in range(170)]
NUM = 20


def engine_of(family: str, layout: KvLayout, buffer: memoryview) -> Engine:
    config = EngineConfig(
        checkpoint=checkpoint(family),
        num_blocks=layout.num_blocks,
        block_size=layout.block_size,
        num_threads=1,
        kv_dtype=layout.dtype,
    )
    return Engine(load_spec(checkpoint(family)), config, buffer)


def cluster_of(
    family: str, directory: Path, *, decode: dict[str, Any], prefill: dict[str, Any]
) -> LocalCluster:
    return LocalCluster(
        checkpoint(family),
        directory,
        decode=[decode],
        prefill=[prefill],
        make_engine=partial(engine_of, family),
        layout=load_spec(checkpoint(family)).kv_layout,
    )


async def answer(decoder: Running, prompt: list[int], *, prefill: Running | None) -> list[int]:
    fields = {} if prefill is None else {"prefill": named(prefill)}
    messages = await decode(decoder, request(prompt, NUM, **fields))
    assert messages[-1].finished.timeline.recomputes == 0
    return ids(messages)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "sizes"),
    [("mistral", (16, 16)), ("qwen3-window", (8, 32)), ("mistral", (32, 8))],
    ids=str,
)
async def test_turns_and_branches_over_windows_are_the_references(
    family: str, sizes: tuple[int, int], tmp_path: Path
) -> None:
    here, there = ({"block_size": size, "num_blocks": 2048 // size} for size in sizes)
    async with cluster_of(family, tmp_path, decode=here, prefill=there) as cluster:
        [decoder], [prefiller] = cluster.decode, cluster.prefill
        decoder.memory[:] = 0xFF  # NaN wherever nothing is written
        first = await answer(decoder, PROMPT, prefill=prefiller)
        turn = [*PROMPT, *first, 5, 6, 7]
        for prompt in (turn, PROMPT[:100], [*PROMPT[:100], 9, 9], [*turn, 8]):
            for prefill in (None, prefiller):
                given = await answer(decoder, prompt, prefill=prefill)
                assert given == reference_greedy(checkpoint(family), prompt, NUM)
        assert first == reference_greedy(checkpoint(family), PROMPT, NUM)
        assert counted(decoder, "cached_tokens") > 3 * 150


@pytest.mark.slow
@pytest.mark.parametrize(
    ("there", "here", "wire_dtype"),
    [
        ("float32", "float32", "bfloat16"),
        ("float32", "float32", "int8"),
        ("float32", "bfloat16", "bfloat16"),
        ("bfloat16", "float32", None),
        ("float16", "float32", None),
    ],
)
async def test_a_loss_is_its_own_requests_and_nobody_elses(
    there: str, here: str, wire_dtype: str | None, tmp_path: Path
) -> None:
    sizes = ({"kv_dtype": here, "wire_dtype": wire_dtype}, {"kv_dtype": there, "block_size": 8})
    async with cluster_of("llama", tmp_path, decode=sizes[0], prefill=sizes[1]) as cluster:
        [decoder], [prefiller] = cluster.decode, cluster.prefill
        await answer(decoder, PROMPT, prefill=prefiller)
        assert counted(decoder, "hand_overs_received") == 1
        num_grains = len(decoder.pool.grains())
        assert (num_grains == 0) is (wire_dtype is not None)
        if wire_dtype is not None and here == "float32":
            exact = await answer(decoder, PROMPT, prefill=None)
            assert exact == reference_greedy(checkpoint("llama"), PROMPT, NUM)
            assert counted(decoder, "cached_tokens") == 0
