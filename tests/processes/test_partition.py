"""One pair of workers cannot reach each other, in silence, while all others can: its requests
are answered, the other pairs notice nothing, and once it is healed it is used again."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cluster.channel import open_channel
from deploy.launcher import LocalCluster, Supervision
from deploy.plan import ClusterPlan, ProcessPlan
from penstock.aio import AsyncClient
from tests.kv_transfer.faulty_transport import Fault, FaultPlan, FaultyTransport
from tests.processes.echo_cluster import is_all_free, status, until
from tests.processes.partition import Network, network
from tests.router.checkpoint import write_checkpoint
from tests.router.fake_worker import TOKEN
from tests.workers import faulty
from tests.workers.answers import expected, prompt_of
from tests.workers.local_cluster import LocalCluster as WorkersInOneLoop

pytestmark = pytest.mark.slow
WORKERS = ["prefill-0", "prefill-1", "decode-0", "decode-1"]
CUT = ("prefill-0", "decode-0")
NUM_OUTPUT = 12


@dataclass(frozen=True, kw_only=True)
class NetworkPlan(ClusterPlan):
    """Each worker where it lives in the network."""

    net: Network

    def worker_plans(self, secrets_file: Path, run_dir: Path, router: str) -> list[ProcessPlan]:
        return [
            replace(
                plan,
                command=(*self.net.inside(plan.name), *plan.command),
                config={**plan.config, "address": f"{self.net.address(plan.name)}:0"},
            )
            for plan in super().worker_plans(secrets_file, run_dir, router)
        ]


@dataclass(frozen=True, slots=True)
class Outcome:
    pair: tuple[str, str]
    num_recomputes: int
    seconds: float


async def ask(client: AsyncClient, number: int) -> Outcome:
    prompt = [number % 256, number // 256, *prompt_of(number, 50)]
    begun = time.monotonic()
    options = {"temperature": 0.0, "max_tokens": NUM_OUTPUT, "ignore_eos": True}
    answer = await client.generate(token_ids=prompt, timeout=30, **options).result()
    assert list(answer.token_ids) == expected(prompt, NUM_OUTPUT)
    pair = (answer.accepted.prefill_worker, answer.accepted.decode_worker)
    return Outcome(pair, answer.timeline.recomputes, time.monotonic() - begun)


async def ask_all(client: AsyncClient, numbers: Sequence[int]) -> list[Outcome]:
    limit = asyncio.Semaphore(8)

    async def bounded(number: int) -> Outcome:
        async with limit:
            return await ask(client, number)

    return await asyncio.gather(*map(bounded, numbers))


async def failed_pairs(cluster: LocalCluster) -> set[tuple[str, str]]:
    return {
        (pair.peer, name)
        for name, worker in (await status(cluster)).items()
        for pair in worker.load.pairs
        if name.startswith("decode") and pair.failures
    }


async def partitioned(folder: Path, net: Network, *, num_asked: int, cut_s: float) -> None:
    plan = NetworkPlan(
        net=net,
        checkpoint=write_checkpoint(folder),
        num_decode=2,
        num_prefill=2,
        host=net.gateway,
        insecure=True,
        num_blocks=256,
        transports=("tcp",),
        drain_s=5.0,
        router={"disaggregate": "always"},
        worker={"engine": "echo", "lease_s": 1.0},
    )
    async with LocalCluster(plan, supervision=Supervision(frozen_s=60.0)) as cluster:
        client = AsyncClient(cluster.address)
        before, number = [], 0
        while CUT not in {one.pair for one in before}:  # who is placed where is the router's affair
            before += await ask_all(client, range(number, number + num_asked))
            number += num_asked
            assert number < 50 * num_asked, before
        assert not any(one.num_recomputes for one in before)
        net.cut(*CUT)
        during: list[Outcome] = []
        cut = time.monotonic()
        while not during or time.monotonic() < cut + cut_s:
            during += await ask_all(client, range(number, number + 2 * num_asked))
            number += 2 * num_asked
        others = [one for one in during if {"prefill-1", "decode-1"} & set(one.pair)]
        recomputed = [one for one in during if one.num_recomputes]
        print(
            f"{len(recomputed)} of {len(during)} recomputed, the slowest after "
            f"{max(one.seconds for one in during):.1f} s; the slowest of the others "
            f"{max(one.seconds for one in others):.1f} s"
        )
        assert not any(one.num_recomputes for one in others)
        assert await failed_pairs(cluster) <= {CUT}
        net.heal(*CUT)
        after: list[Outcome] = []
        healed = time.monotonic()
        while not any(one.pair == CUT and not one.num_recomputes for one in after):
            after = await ask_all(client, range(number, number + 8))
            number += 8
            assert time.monotonic() - healed < 30, after
        print(f"in use again {time.monotonic() - healed:.1f} s after it is healed")
        await until(lambda: is_all_free(cluster), 10.0)
        await client.close()


@asynccontextmanager
async def cut_in_one_process(cluster: WorkersInOneLoop) -> AsyncIterator[None]:
    """Where no network can be cut: what is said to the other end goes to one that is silent,
    and what is written to it stands still."""
    silent = socket.create_server(("127.0.0.1", 0))  # connects, and never answers
    address = f"127.0.0.1:{silent.getsockname()[1]}"
    writer, receiver = (cluster.named(name) for name in CUT)
    peers = receiver.worker._transfers.peers
    life = writer.worker.member.worker.incarnation
    channel, peers._channels[life] = peers._channels[life], open_channel(address, TOKEN)
    cluster.disturb(*CUT, FaultPlan(shares={Fault.STALL: 1}))
    try:
        yield
    finally:
        await peers._channels[life].close()
        peers._channels[life] = channel
        cluster.disturb(*CUT, FaultPlan())
        writer.transport.release()
        silent.close()


async def partitioned_in_one_process(folder: Path) -> None:
    worker = {"lease_s": 1.0, "num_blocks": 128}
    cluster = WorkersInOneLoop(
        write_checkpoint(folder),
        folder,
        decode=[worker, worker],
        prefill=[worker, worker],
        disaggregate="always",
        door="tcp",
        wrap_transport=FaultyTransport,
    )
    async with cluster:
        before, number = [], 0
        while CUT not in {one.pair for one in before}:
            before += await faulty.ask_all(cluster, range(number, number + 24))
            number += 24
            assert number < 1200, before
        async with cut_in_one_process(cluster):
            during = await faulty.ask_all(cluster, range(number, number + 48))
        others = [one for one in during if {"prefill-1", "decode-1"} & set(one.pair)]
        print(f"{sum(one.num_recomputes for one in during)} of {len(during)} recomputed")
        assert any(one.num_recomputes for one in during)
        assert not any(one.num_recomputes for one in others)
        assert faulty.failed_pairs(cluster).keys() <= {CUT}
        await asyncio.wait_for(cluster.idle(), 10.0)
        after: list[faulty.Outcome] = []
        while not any(one.pair == CUT and not one.num_recomputes for one in after):
            number += 48
            after = await faulty.ask_all(cluster, range(number, number + 48))


@pytest.mark.alone
async def test_a_pair_that_is_cut_off_costs_no_answer_and_comes_back(tmp_path: Path) -> None:
    with network(WORKERS) as net:
        if net is None:
            await partitioned_in_one_process(tmp_path)
        else:
            await partitioned(tmp_path, net, num_asked=24, cut_s=0.0)


@pytest.mark.prove
async def test_it_comes_back_from_a_long_cut_as_well(tmp_path: Path) -> None:
    with network(WORKERS) as net:
        if net is None:
            pytest.fail("A long cut is proven between network namespaces only.")
        await partitioned(tmp_path, net, num_asked=50, cut_s=30.0)


@pytest.mark.prove
async def test_what_stands_in_for_namespaces_shows_the_same(tmp_path: Path) -> None:
    await partitioned_in_one_process(tmp_path)
