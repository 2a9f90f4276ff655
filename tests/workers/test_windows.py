"""Layers with a sliding window hand over what a later token can see, and no more; what lies
cached from that serves whoever may have it. The echo engine checks every slot that is seen, and
memory that nobody wrote is poisoned."""

import asyncio
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engine.echo import echo_layout
from tests.workers.answers import VOCAB, expected, prompt_of
from tests.workers.decoding import decode
from tests.workers.fetching import counted, ids, named, request
from tests.workers.local_cluster import LocalCluster, Running

pytestmark = pytest.mark.slow

PROMPT = prompt_of(5, 200)
SLOT_BYTES = 2 * 8  # K and V of one token in one layer


def cluster_of(
    checkpoint: Path,
    directory: Path,
    windows: tuple[int | None, ...] = (40, None),
    *,
    decode: Sequence[dict[str, Any]] = ({},),
    prefill: Sequence[dict[str, Any]] = ({},),
) -> LocalCluster:
    layout = partial(echo_layout, windows=windows)
    return LocalCluster(checkpoint, directory, decode=decode, prefill=prefill, layout=layout)


def poison(cluster: LocalCluster) -> None:
    for running in cluster.workers:
        running.memory[:] = 0xFF


async def ask(
    running: Running,
    prompt: list[int],
    *,
    prefill: Running | None = None,
    source: Running | None = None,
) -> list[Any]:
    fields = {} if prefill is None else {"prefill": named(prefill)}
    messages = await decode(running, request(prompt, source=source, **fields))
    assert ids(messages) == expected(prompt, 8)
    assert messages[-1].finished.timeline.recomputes == 0
    return messages


async def test_what_no_later_token_sees_does_not_travel(checkpoint: Path, tmp_path: Path) -> None:
    async with cluster_of(checkpoint, tmp_path) as cluster:
        poison(cluster)
        before = counted(cluster.decode[0], "transfer_bytes")
        await ask(cluster.decode[0], PROMPT, prefill=cluster.prefill[0])
        moved = counted(cluster.decode[0], "transfer_bytes") - before
        # From 192 on a token sees those from 153 on; runs of 32 tokens are whole.
        assert moved == (200 + (200 - 128)) * SLOT_BYTES


async def test_a_longer_prompt_reuses_all_of_it_and_a_shorter_one_what_it_may(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with cluster_of(checkpoint, tmp_path) as cluster:
        poison(cluster)
        worker = cluster.decode[0]
        await ask(worker, PROMPT, prefill=cluster.prefill[0])
        second = await ask(worker, [*PROMPT, *expected(PROMPT, 8), 7, 8])
        assert second[0].accepted.cached_tokens == 192
        shorter = await ask(worker, [*PROMPT[:150], 9])
        assert shorter[0].accepted.cached_tokens == 0, "its window reaches into what is not here"
        again = await ask(worker, [*PROMPT[:150], 10])
        assert again[0].accepted.cached_tokens == 144, "computed here: whole ones replace thin ones"


async def test_what_is_half_here_is_lent_only_to_who_may_have_it(
    checkpoint: Path, tmp_path: Path
) -> None:
    sizes = [{}, {"block_size": 8}]
    async with cluster_of(checkpoint, tmp_path, decode=sizes) as cluster:
        poison(cluster)
        lender, borrower = cluster.decode
        await ask(lender, PROMPT, prefill=cluster.prefill[0])
        whole = await ask(borrower, [*PROMPT, 3], source=lender)
        assert whole[0].accepted.cached_tokens == 192
        assert counted(borrower, "fetched_tokens") == 192
        part = await ask(borrower, [*PROMPT[:150], 9], source=lender)
        assert part[0].accepted.cached_tokens == 0


@pytest.mark.slow
@pytest.mark.parametrize("windows", [(40, None), (40, 72), (1, 33), (200, 200)], ids=str)
async def test_conversations_over_every_path_see_what_they_should(
    checkpoint: Path, tmp_path: Path, windows: tuple[int, int | None]
) -> None:
    await converse(checkpoint, tmp_path, windows, seed=1, num=24)


@pytest.mark.prove
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("windows", [(40, None), (40, 72), (1, 33), (200, 200), (16, 16)], ids=str)
async def test_many_conversations(
    checkpoint: Path, tmp_path: Path, windows: tuple[int, int | None], seed: int
) -> None:
    await converse(checkpoint, tmp_path, windows, seed=seed, num=300)


async def converse(
    checkpoint: Path, directory: Path, windows: tuple[int | None, ...], *, seed: int, num: int
) -> None:
    """Prompts that extend, or branch off, those before; block sizes that differ; little memory."""
    rng = random.Random(seed)
    decoders = [{"num_blocks": 512 // size, "block_size": size} for size in (8, 16, 32)]
    prefillers = [{"num_blocks": 1024 // size, "block_size": size} for size in (16, 32)]
    cluster = cluster_of(checkpoint, directory, windows, decode=decoders, prefill=prefillers)
    known = [[rng.randrange(VOCAB) for _ in range(150)]]
    limit = asyncio.Semaphore(3)

    async def turn(prompt: list[int]) -> None:
        async with limit:
            receiver = rng.choice(cluster.decode)
            source = rng.choice([None, *(one for one in cluster.workers if one is not receiver)])
            prefill = rng.choice([None, *cluster.prefill])
            fields = {} if prefill is None else {"prefill": named(prefill)}
            made = request(prompt, source=None if source is prefill else source, **fields)
            assert ids(await decode(receiver, made)) == expected(prompt, 8)

    async with cluster:
        poison(cluster)
        async with asyncio.TaskGroup() as turns:
            for _ in range(num):
                prompt = rng.choice(known)[: rng.randrange(20, 250)]
                prompt = prompt + [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 60))]
                known.append(prompt + expected(prompt, 8))
                turns.create_task(turn(prompt))
        reused = sum(counted(one, "cached_tokens") for one in cluster.workers)
        assert reused > 0
        assert sum(counted(one, "hand_over_recomputes") for one in cluster.decode) == 0
    print(f"{windows}, seed {seed}: {reused:.0f} tokens reused in {num} turns")
