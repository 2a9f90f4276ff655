"""Through router, decode and prefill worker, greedy output is the reference's, token for token;
and no way of getting there changes it: remote or local, cold or cached, block sizes, chunk
budgets, batches, memory so small that sequences are put back.

Counters show that each way was really taken, and that no recompute was unplanned.
"""

import asyncio
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import FAMILIES
from tests.engine.greedy import count_mismatches
from tests.exactness.ways import HEAD, Way, ask, cluster_of, draw_prompts
from tests.workers.local_cluster import LocalCluster

# Every pair of values of any two settings occurs (a covering array of strength two).
PAIRWISE = [
    Way(remote=True, cached=False, block_size=8, chunk=32, batch=1),
    Way(remote=True, cached=True, block_size=16, chunk=512, batch=16, small=True),
    Way(remote=True, cached=True, block_size=32, chunk=32, batch=16),
    Way(remote=False, cached=False, block_size=8, chunk=512, batch=16, small=True),
    Way(remote=False, cached=True, block_size=8, chunk=32, batch=1),
    Way(remote=False, cached=False, block_size=16, chunk=32, batch=16, small=True),
    Way(remote=False, cached=True, block_size=32, chunk=512, batch=1),
    Way(remote=True, cached=False, block_size=16, chunk=512, batch=1),
    Way(remote=False, cached=False, block_size=32, chunk=32, batch=16, small=True),
]


async def answers(family: str, way: Way, directory: Path, prompts: list[list[int]]) -> list[Any]:
    """All prompts through a cluster of that way, whose counters must show it."""
    async with cluster_of(family, way, directory) as cluster:
        if way.cached:
            await ask(cluster, [*HEAD, 5, 6], way, 0)
        limit = asyncio.Semaphore(way.batch)

        async def bounded(index: int) -> list[int]:
            async with limit:
                return await ask(cluster, prompts[index], way, index)

        outputs = await asyncio.gather(*(bounded(i) for i in range(len(prompts))))
        check_counters(cluster, way, len(prompts))
    return list(outputs)


def check_counters(cluster: LocalCluster, way: Way, num_prompts: int) -> None:
    decode = cluster.decode[0].worker
    hand_overs, scheduler = cluster.decode[0].counters, decode.scheduler.counters()
    assert hand_overs["hand_over_recomputes"] == 0
    assert hand_overs["hand_overs_received"] == (num_prompts + way.cached) * way.remote
    assert (hand_overs["transfer_bytes"] > 0) is way.remote
    computing = cluster.prefill[0].worker if way.remote else decode
    if way.cached:
        assert computing.scheduler.counters()["cached_tokens"] >= 32 * num_prompts
    if way.small:
        assert scheduler["preemptions"] > 0


async def check_greedy(family: str, way: Way, directory: Path, num: int) -> None:
    prompts = draw_prompts(len(str(way)), num, cached=way.cached)
    outputs = await answers(family, way, directory, prompts)
    num_mismatches = await asyncio.to_thread(count_mismatches, family, prompts, outputs)
    num_tokens = sum(map(len, outputs))
    print(f"{family} {way}: {num_mismatches} close mismatches in {num_tokens} tokens")
    assert num_mismatches <= num_tokens / 10_000


async def check_sampled(family: str, ways: list[Way], directory: Path, num: int) -> None:
    """Sampled with a seed: the same on every way as on the plainest one."""
    plain = Way(remote=False, batch=1, temperature=0.9)
    prompts = draw_prompts(3, num, cached=True)
    right = await answers(family, plain, directory, prompts)
    for way in ways:
        given = await answers(family, way, directory, prompts)
        wrong = sum(a[:12] != b for a, b in zip(given, right, strict=True))
        assert wrong == 0, f"{family} {way}: {wrong} of {num} sampled answers differ"


def sampled(way: Way) -> Way:
    return Way(
        remote=way.remote,
        cached=way.cached,
        block_size=way.block_size,
        chunk=way.chunk,
        batch=way.batch,
        small=way.small,
        temperature=0.9,
    )


ONE_EACH = [(family, PAIRWISE[i % len(PAIRWISE)]) for i, family in enumerate(FAMILIES)]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "way"), ONE_EACH, ids=str)
async def test_greedy_answers_equal_the_reference(family: str, way: Way, tmp_path: Path) -> None:
    await check_greedy(family, way, tmp_path, 20)


@pytest.mark.slow
async def test_sampled_answers_do_not_depend_on_the_way(tmp_path: Path) -> None:
    await check_sampled("qwen3", [sampled(w) for w in (PAIRWISE[1], PAIRWISE[5])], tmp_path, 20)


@pytest.mark.prove
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("family", "way"), list(product(FAMILIES, PAIRWISE)), ids=str)
async def test_every_family_on_every_way(family: str, way: Way, tmp_path: Path) -> None:
    await check_greedy(family, way, tmp_path, 200)


@pytest.mark.prove
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("family", FAMILIES)
async def test_sampled_answers_of_every_family_on_every_way(family: str, tmp_path: Path) -> None:
    await check_sampled(family, [sampled(way) for way in PAIRWISE], tmp_path, 40)
