"""Fetches over every transport, undisturbed and disturbed: what did not arrive whole is computed,
counted, and never findable."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kv_transfer.doors import DOORS
from tests.kv_transfer.faulty_transport import Fault, FaultPlan, FaultyTransport
from tests.workers.answers import expected, prompt_of
from tests.workers.decoding import decode
from tests.workers.faulty import HARMFUL
from tests.workers.fetching import PROMPT, counted, ids, request, warm
from tests.workers.local_cluster import LocalCluster

PROVED = {name: pytest.mark.gpu if name == "nccl" else pytest.mark.prove for name in DOORS}
KINDS = ["memory", *(pytest.param(name, marks=mark) for name, mark in PROVED.items())]


def cluster_of(checkpoint: Path, tmp_path: Path, kind: str, **settings: Any) -> LocalCluster:
    return LocalCluster(
        checkpoint,
        tmp_path,
        decode=[{}, settings],
        prefill=[],
        door=kind,
        wrap_transport=FaultyTransport,
    )


@pytest.mark.parametrize("kind", KINDS)
async def test_every_transport_brings_a_prefix(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    settings = {"fetch_s": 10.0, "block_size": 8}
    async with cluster_of(checkpoint, tmp_path, kind, **settings) as cluster:
        source, receiver = cluster.decode
        for number in range(4):
            prompt = prompt_of(number, 100)
            await warm(source, prompt)
            assert ids(await decode(receiver, request(prompt, source=source))) == expected(
                prompt, 8
            )
        assert counted(receiver, "fetched_tokens") == 4 * 96
        assert counted(receiver, "fetch_failures") == 0


@pytest.mark.slow
@pytest.mark.parametrize("fault", HARMFUL)
@pytest.mark.parametrize("kind", KINDS)
async def test_what_did_not_arrive_whole_is_computed(
    checkpoint: Path, tmp_path: Path, kind: str, fault: Fault
) -> None:
    async with cluster_of(checkpoint, tmp_path, kind, fetch_s=0.5) as cluster:
        source, receiver = cluster.decode
        cluster.disturb("decode-0", "decode-1", FaultPlan(shares={fault: 1.0}))
        await warm(source)
        messages = await decode(receiver, request(source=source))
        assert ids(messages) == expected(PROMPT, 8)
        assert messages[0].accepted.cached_tokens == 0
        assert counted(receiver, "fetch_failures") == 1
        assert counted(receiver, "fetched_tokens") == 0
        cluster.disturb("decode-0", "decode-1", FaultPlan())
        source.transport.release()
        await asyncio.wait_for(cluster.idle(), 5.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lease_s", "fetch_s"), [(0.6, 5.0), (3.0, 0.8)], ids=["silent for a lease", "too long in all"]
)
async def test_a_source_that_stands_still_is_asked_once_until_it_moves(
    checkpoint: Path, tmp_path: Path, lease_s: float, fetch_s: float
) -> None:
    """However short its rests are."""
    prompts = [prompt_of(number, 100) for number in range(5)]
    settings = {"fetch_s": fetch_s, "lease_s": lease_s, "num_blocks": 128}
    async with cluster_of(checkpoint, tmp_path, "shared_memory", **settings) as cluster:
        source, receiver = cluster.decode
        for prompt in prompts:
            await warm(source, prompt)
        transfers = receiver.worker._transfers
        transfers.rests._rest_s = 0.0
        cluster.disturb("decode-0", "decode-1", FaultPlan(shares={Fault.STALL: 1.0}))
        for prompt in prompts:
            assert ids(await decode(receiver, request(prompt, source=source))) == expected(
                prompt, 8
            )
        assert counted(receiver, "fetch_failures") == 5
        assert counted(source, "lent_tokens") == 96, "it was asked again"
        cluster.disturb("decode-0", "decode-1", FaultPlan())
        source.transport.release()
        await asyncio.wait_for(cluster.idle(), 5.0)
        transfers.fetches._loans = replace(transfers.loans, lease_s=10.0)
        transfers.fetches._limit_s = 10.0
        another = prompt_of(5, 100)
        await warm(source, another)
        assert ids(await decode(receiver, request(another, source=source))) == expected(another, 8)
        assert counted(receiver, "fetched_tokens") == 96
