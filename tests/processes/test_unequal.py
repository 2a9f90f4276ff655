"""Real processes whose pools differ: they serve together where they can, and say why where not."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from cluster.errors import StartupError
from deploy.launcher import LocalCluster
from deploy.plan import ClusterPlan
from penstock.aio import AsyncClient
from tests.checkpoints import VOCAB_SIZE, checkpoint, reference_greedy
from tests.processes.echo_cluster import NO_KILLING, ask, status

PROMPT = [2 + (i * i + 7 * i) % (VOCAB_SIZE - 2) for i in range(120)]


def plan_of(
    family: str, prefill: Mapping[str, Any], decode: Mapping[str, Any], **changes: Any
) -> ClusterPlan:
    return ClusterPlan(
        checkpoint=checkpoint(family),
        num_blocks=256,
        drain_s=5.0,
        router={"disaggregate": "always"},
        prefill=prefill,
        decode=decode,
        **changes,
    )


@pytest.mark.prove
@pytest.mark.parametrize(
    ("transport", "prefill", "decode"),
    [
        ("shared_memory", {"block_size": 8}, {"block_size": 32}),
        ("tcp", {"block_size": 32, "kv_dtype": "bfloat16"}, {"block_size": 8}),
        ("nixl", {"block_size": 8}, {"kv_dtype": "bfloat16", "wire_dtype": "bfloat16"}),
        ("gloo", {}, {"wire_dtype": "int8"}),
    ],
    ids=str,
)
async def test_workers_whose_pools_differ_serve_together(
    transport: str, prefill: Mapping[str, Any], decode: Mapping[str, Any]
) -> None:
    family = "mistral"  # with windows
    plan = plan_of(family, prefill, decode, transports=(transport,))
    is_exact = not {"kv_dtype", "wire_dtype"} & {*prefill, *decode}
    async with LocalCluster(plan, supervision=NO_KILLING) as cluster:
        client = AsyncClient(cluster.address)
        answers = [await ask(client, PROMPT, 12) for _ in range(3)]
        if is_exact:
            assert answers == [reference_greedy(checkpoint(family), PROMPT, 12)] * 3
        counters: Mapping[str, float] = {}
        while counters.get("hand_overs_received", 0) < 3:  # told in a later report
            counters = (await status(cluster))["decode-0"].load.counters
            await asyncio.sleep(0.05)
        assert counters["hand_over_recomputes"] == 0
        await client.close()


@pytest.mark.prove
async def test_a_pair_that_would_lose_unasked_is_refused_when_it_joins() -> None:
    plan = plan_of("llama", {}, {"kv_dtype": "bfloat16"})
    with pytest.raises(StartupError, match="float32 does not fit bfloat16"):
        async with asyncio.timeout(60), LocalCluster(plan, supervision=NO_KILLING):
            pass
