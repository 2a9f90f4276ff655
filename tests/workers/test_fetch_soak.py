"""Requests that fetch from whoever may have their prefix, in too little memory and with random
cancels, leave nothing behind and get no wrong token."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.types import Placement
from router import placer
from tests.workers import mixed_load
from tests.workers.answers import prompt_of
from tests.workers.fetching import counted
from tests.workers.local_cluster import LocalCluster

WORKERS = ["decode-0", "decode-1", "prefill-0", "prefill-1"]


@pytest.fixture(autouse=True)
def fetching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anyone computes, and has a source: often the one that knows most, sometimes anyone."""
    rng, choose = random.Random(5), placer.place

    def place(request: Any, snapshot: Any, *others: Any) -> Any:
        decision, state = choose(request, snapshot, *others)
        held = zip(snapshot.loads, request.num_ready.tolist(), strict=True)
        cached = {load.worker: int(num) for load, num in held if num}
        best = max(cached, key=cached.__getitem__, default=WORKERS[0])
        source = best if rng.random() < 0.7 else rng.choice(WORKERS)
        placement = Placement(
            decode=rng.choice(WORKERS[:2]),
            prefill=decision.placement.prefill and rng.choice(WORKERS[2:]),
            source=source,
            num_source_tokens=cached.get(source, 0) * request.grain_tokens,
        )
        return replace(decision, placement=placement), state

    def varied(number: int, length: int) -> list[int]:
        """More prefixes than fit into one worker's cache."""
        return prompt_of(number + 4 * rng.randrange(6), length)

    monkeypatch.setattr(placer, "place", place)
    monkeypatch.setattr(mixed_load, "prompt_of", varied)


async def run(checkpoint: Path, tmp_path: Path, disaggregate: str, num_requests: int) -> None:
    cluster = LocalCluster(
        checkpoint,
        tmp_path,
        decode=[{"num_blocks": 40}, {"num_blocks": 64, "block_size": 8}],
        prefill=[{"num_blocks": 64}, {"num_blocks": 32, "block_size": 32}],
        disaggregate=disaggregate,
    )
    async with cluster:
        await mixed_load.soak(cluster, num_requests)
        for name in ("fetches", "fetched_tokens", "fetch_failures", "lent_tokens"):
            print(name, [counted(running, name) for running in cluster.workers])
        assert sum(counted(running, "fetched_tokens") for running in cluster.workers) > 0


@pytest.mark.slow
@pytest.mark.parametrize("disaggregate", ["always", "never"])
async def test_a_hundred_requests_that_fetch(
    checkpoint: Path, tmp_path: Path, disaggregate: str
) -> None:
    await run(checkpoint, tmp_path, disaggregate, 100)


@pytest.mark.prove
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("disaggregate", ["always", "never", "auto"])
async def test_two_thousand_requests_that_fetch(
    checkpoint: Path, tmp_path: Path, disaggregate: str
) -> None:
    await run(checkpoint, tmp_path, disaggregate, 2_000)
