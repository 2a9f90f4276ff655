"""Faults under every transport, in one pair of four: no answer is wrong or missing, no block is
lost, and the other pairs notice nothing.

Echo engines check every slot of their context, so KV that is not what it should be is an error.
"""

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from cluster.types import Placement, Role
from kv_transfer.doors import DOORS
from router import placer
from tests.kv_transfer.faulty_transport import Fault, FaultPlan, FaultyTransport
from tests.router.cluster_of_fakes import failure
from tests.workers.faulty import HARMFUL, Outcome, ask, ask_all, failed_pairs
from tests.workers.local_cluster import LocalCluster

# Not NCCL: it moves what lies on devices, and an echo engine's pool lies in host memory.
KINDS = ["memory", *(name for name in DOORS if name != "nccl")]
MANY = {fault: 0.07 for fault in Fault if fault is not Fault.STALL}


@pytest.fixture(autouse=True)
def every_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs at random: it is the transfers that are looked at, not who is cheapest."""
    rng, choose = random.Random(5), placer.place

    def place(request: Any, snapshot: Any, *others: Any) -> Any:
        decision, state = choose(request, snapshot, *others)
        names = [load.worker for load in snapshot.loads if load.worker not in request.excluded]
        prefills = [name for name in names if name.startswith("prefill")]
        if decision is None or not prefills:
            return decision, state
        decode = rng.choice([name for name in names if name.startswith("decode")])
        prefill = rng.choice(prefills)
        return replace(decision, placement=Placement(decode=decode, prefill=prefill)), state

    monkeypatch.setattr(placer, "place", place)


def cluster_of(checkpoint: Path, tmp_path: Path, kind: str, **settings: Any) -> LocalCluster:
    worker = {"num_blocks": 96, "max_sequences": 32, **settings}
    return LocalCluster(
        checkpoint,
        tmp_path,
        decode=[worker, worker],
        prefill=[worker, worker],
        disaggregate="always",
        door=kind,
        wrap_transport=FaultyTransport,
    )


def total(cluster: LocalCluster, counter: str) -> float:
    return sum(each.counters.get(counter, 0) for each in cluster.decode)


async def undisturbed(cluster: LocalCluster, num_requests: int) -> None:
    outcomes = await ask_all(cluster, range(num_requests))
    assert not any(outcome.num_recomputes for outcome in outcomes)
    assert {outcome.pair for outcome in outcomes} == {
        (f"prefill-{p}", f"decode-{d}") for p in (0, 1) for d in (0, 1)
    }
    assert total(cluster, "hand_over_recomputes") == 0
    assert total(cluster, "hand_overs_received") == num_requests
    await asyncio.wait_for(cluster.idle(), 2.0)


async def disturbed(
    cluster: LocalCluster, shares: dict[Fault, float], numbers: range, *, seed: int = 7
) -> list[Outcome]:
    """Faults in what prefill-0 writes to decode-0; what must hold whatever they are."""
    num_received = total(cluster, "hand_overs_received")
    before = failed_pairs(cluster)  # a probe at join may have had no time on a busy machine
    cluster.disturb("prefill-0", "decode-0", FaultPlan(shares=shares, seed=seed))
    outcomes = await ask_all(cluster, numbers)
    others = [one for one in outcomes if {"prefill-1", "decode-1"} & set(one.pair)]
    assert others
    assert not any(one.num_recomputes for one in others), "another pair noticed"
    failed = {pair: why for pair, why in failed_pairs(cluster).items() if why != before.get(pair)}
    assert failed.keys() <= {("prefill-0", "decode-0")}, failed
    recomputed = total(cluster, "hand_over_recomputes")
    assert recomputed == sum(one.num_recomputes for one in outcomes)
    assert total(cluster, "hand_overs_received") - num_received + recomputed == len(numbers)
    cluster.named("prefill-0").transport.release()
    await asyncio.wait_for(cluster.idle(), 2.0)
    return outcomes


def num_failures(cluster: LocalCluster, reason: str) -> float:
    counters = cluster.named("decode-0").counters
    return sum(
        value
        for name, value in counters.items()
        if name.startswith("transfer_failures.") and name.endswith(f".{reason}")
    )


@pytest.mark.slow
@pytest.mark.parametrize("fault", [fault for fault in HARMFUL if fault is not Fault.STALL])
async def test_each_fault_costs_a_recompute_that_says_why(
    checkpoint: Path, tmp_path: Path, fault: Fault
) -> None:
    async with cluster_of(checkpoint, tmp_path, "memory") as cluster:
        outcomes = await disturbed(cluster, {fault: 0.3}, range(40))
        num_faults = cluster.named("prefill-0").transport.num_faults[fault]
        num_recomputes = sum(one.num_recomputes for one in outcomes)
        assert num_recomputes > 0
        assert num_failures(cluster, HARMFUL[fault]) == num_recomputes
        assert num_recomputes <= num_faults or fault is Fault.DISCONNECT  # all that it carried


@pytest.mark.slow
@pytest.mark.prove
async def test_a_pair_that_stands_still_is_left_alone_until_it_moves(
    checkpoint: Path, tmp_path: Path
) -> None:
    pair = ("prefill-0", "decode-0")
    async with cluster_of(checkpoint, tmp_path, "shared_memory", lease_s=1.5) as cluster:
        cluster.disturb(*pair, FaultPlan(shares={Fault.STALL: 1}))
        first = await ask_all(cluster, range(24))
        assert any(one.num_recomputes for one in first)
        assert all(one.num_recomputes == 0 for one in first if one.pair != pair)
        num_lapsed = num_failures(cluster, "lapsed")
        num_quarantined = cluster.named("decode-0").worker._transfers.table.num_quarantined_blocks
        assert num_quarantined > 0
        later = await ask_all(cluster, range(24, 96))
        assert any(one.num_recomputes for one in later), "at once"
        assert num_failures(cluster, "lapsed") == num_lapsed, "it was tried again"
        cluster.disturb(*pair, FaultPlan())
        cluster.named("prefill-0").transport.release()
        await asyncio.wait_for(cluster.idle(), 2.0)
        async with asyncio.timeout(20):
            number = 96
            while (one := await ask(cluster, number)).pair != pair or one.num_recomputes:
                number += 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
async def test_every_prompt_is_handed_over_and_faults_in_one_pair_cost_no_answer(
    checkpoint: Path, tmp_path: Path, kind: str
) -> None:
    async with cluster_of(checkpoint, tmp_path, kind) as cluster:
        await undisturbed(cluster, 40)
        await disturbed(cluster, MANY, range(40, 100))


@pytest.mark.slow
async def test_where_only_tokens_are_counted_a_short_hand_over_is_still_caught(
    checkpoint: Path, tmp_path: Path
) -> None:
    """And a corrupted one is not: that is what `digest: count` gives up. The echo engine sees it
    in its slots, and refuses to answer; a model would answer wrongly."""
    async with cluster_of(checkpoint, tmp_path, "memory", digest="count") as cluster:
        outcomes = await disturbed(cluster, {Fault.TRUNCATE: 0.3}, range(40))
        num_recomputes = sum(one.num_recomputes for one in outcomes)
        assert num_failures(cluster, "short") == num_recomputes > 0
        for receiver in ("decode-0", "decode-1"):
            for writer in ("prefill-0", "prefill-1"):
                cluster.disturb(writer, receiver, FaultPlan(shares={Fault.CORRUPT: 1}))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(cluster, 40)
        assert failure(caught.value).code is grpc.StatusCode.INTERNAL
        assert num_failures(cluster, "digest") == 0


@pytest.mark.prove
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "fault", [None, *Fault, MANY], ids=lambda f: "many" if f is MANY else str(f)
)
@pytest.mark.parametrize("kind", KINDS)
async def test_two_thousand_requests_under_each_fault(
    checkpoint: Path, tmp_path: Path, kind: str, fault: Any
) -> None:
    async with cluster_of(checkpoint, tmp_path, kind) as cluster:
        if fault is None:
            await undisturbed(cluster, 2000)
            return
        shares = MANY if fault is MANY else {fault: 0.02 if fault is Fault.STALL else 0.2}
        outcomes = await disturbed(cluster, shares, range(2000))
        num_faults = cluster.named("prefill-0").transport.num_faults
        num_recomputes = sum(one.num_recomputes for one in outcomes)
        others = [one.seconds for one in outcomes if {"prefill-1", "decode-1"} & set(one.pair)]
        print(
            f"{kind}: {num_faults.total()} faults, {num_recomputes} recomputed; slowest of the "
            f"other pairs {max(others):.2f} s"
        )
        assert num_faults.total() > 0
        assert (num_recomputes > 0) == bool(shares.keys() & HARMFUL.keys())


@pytest.mark.slow
async def test_a_second_life_beside_a_writer_that_stands_still_frees_nothing(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Whoever started it again may not have seen the first one die: its process still can write,
    and on this machine that can be seen."""
    worker = {"lease_s": 1.0, "num_blocks": 96}
    cluster = LocalCluster(
        checkpoint,
        tmp_path,
        decode=[worker],
        prefill=[worker],
        disaggregate="always",
        door="shared_memory",
        wrap_transport=FaultyTransport,
    )
    async with cluster:
        cluster.disturb("prefill-0", "decode-0", FaultPlan(shares={Fault.STALL: 1}))
        assert (await ask(cluster, 0)).num_recomputes == 1
        table = cluster.decode[0].worker._transfers.table
        num_quarantined = table.num_quarantined_blocks
        assert num_quarantined > 0
        await cluster.start_worker(Role.PREFILL, worker_id="prefill-0", **worker)
        async with asyncio.timeout(20):
            number = 1
            while (one := await ask(cluster, number)).pair[0] == "" or one.num_recomputes:
                number += 1
        assert table.num_quarantined_blocks == num_quarantined
        cluster.prefill[0].transport.release()
        await asyncio.wait_for(cluster.idle(), 10.0)
