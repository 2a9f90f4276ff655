"""A prefix fetched from another worker, of other block size, gives the reference's tokens."""

import asyncio
from functools import partial
from pathlib import Path

import pytest

from engine.checkpoint import load_spec
from tests.checkpoints import FAMILIES, checkpoint
from tests.engine.greedy import count_mismatches
from tests.exactness.ways import draw_prompts, torch_engine
from tests.workers.decoding import continuation, decode
from tests.workers.fetching import counted, ids, named
from tests.workers.local_cluster import LocalCluster

BLOCK_SIZES = [(16, 16), (8, 32), (32, 8)]


async def check(
    family: str, sizes: tuple[int, int], directory: Path, num: int, *, remote: bool
) -> None:
    """Each prompt is computed by one worker, then answered by another that fetches it."""
    workers = [{"block_size": size, "num_blocks": 6_000 // size} for size in sizes]
    cluster = LocalCluster(
        checkpoint(family),
        directory,
        decode=workers,
        prefill=workers[1:] if remote else [],
        make_engine=partial(torch_engine, family),
        layout=load_spec(checkpoint(family)).kv_layout,
    )
    prompts = [prompt + prompt[:20] for prompt in draw_prompts(11, num, cached=False)]
    async with cluster:
        source, receiver = cluster.decode
        where = {"prefill": named(cluster.prefill[0])} if remote else {}
        outputs = []
        for prompt in prompts:
            await decode(source, continuation([], prompt=prompt, max_tokens=1))
            request = continuation([], prompt=prompt, max_tokens=12, **where)
            request.source.CopyFrom(named(source))
            outputs.append(ids(await decode(receiver, request)))
        fetching = cluster.prefill[0] if remote else receiver
        largest = max(sizes)
        longest = sum((len(prompt) - 1) // largest * largest for prompt in prompts)
        assert counted(fetching, "fetch_failures") == 0
        assert longest * 0.7 < counted(fetching, "fetched_tokens") <= longest
    num_mismatches = await asyncio.to_thread(count_mismatches, family, prompts, outputs)
    assert num_mismatches <= sum(map(len, outputs)) / 10_000


@pytest.mark.slow
@pytest.mark.parametrize("remote", [False, True], ids=["decode", "prefill"])
async def test_a_fetched_prefix_gives_the_reference_tokens(tmp_path: Path, remote: bool) -> None:
    await check("qwen3", BLOCK_SIZES[1], tmp_path, 10, remote=remote)


@pytest.mark.prove
@pytest.mark.timeout(900)
@pytest.mark.parametrize("remote", [False, True], ids=["decode", "prefill"])
@pytest.mark.parametrize("sizes", BLOCK_SIZES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
async def test_every_family_fetches_exactly(
    tmp_path: Path, family: str, sizes: tuple[int, int], remote: bool
) -> None:
    await check(family, sizes, tmp_path, 60, remote=remote)
