"""Writers and receivers killed, restarted at the same address and left by their clients, under
each transport: no answer is lost or wrong, and memory is free again in time."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from deploy.launcher import LocalCluster, Supervision
from deploy.plan import ClusterPlan
from kv_transfer.doors import DOORS
from penstock.aio import AsyncClient
from tests.processes.echo_cluster import ask, is_all_free, status, until
from tests.router.checkpoint import write_checkpoint
from tests.workers.answers import expected, prompt_of

pytestmark = pytest.mark.slow
# Not NCCL: it moves what lies on devices, and an echo engine's pool lies in host memory.
KINDS = [name for name in DOORS if name != "nccl"]
QUICK = ["tcp"]  # memory that is shared: test_faults
SUPERVISION = Supervision(frozen_s=60.0, first_backoff_s=0.1)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@asynccontextmanager
async def running(folder: Path, kind: str) -> AsyncIterator[tuple[LocalCluster, AsyncClient]]:
    """One prefill worker at fixed ports, so that its next life has the same address."""
    plan = ClusterPlan(
        checkpoint=write_checkpoint(folder),
        num_decode=2,
        num_blocks=256,
        transports=(kind,),
        drain_s=5.0,
        router={"disaggregate": "always"},
        worker={"engine": "echo", "lease_s": 1.0},
        prefill={"address": f"127.0.0.1:{free_port()}", "tcp_port": free_port()},
    )
    async with LocalCluster(plan, supervision=SUPERVISION) as cluster:
        client = AsyncClient(cluster.address)
        try:
            yield cluster, client
        finally:
            await client.close()


async def counted(cluster: LocalCluster, counter: str) -> float:
    return sum(w.load.counters.get(counter, 0.0) for w in (await status(cluster)).values())


async def ask_many(client: AsyncClient, numbers: range) -> None:
    """All at once; every answer is right."""
    prompts = [prompt_of(number, 60 + number % 40) for number in numbers]
    answers = await asyncio.gather(*(ask(client, prompt, 20) for prompt in prompts))
    assert answers == [expected(prompt, 20) for prompt in prompts]


async def until_back(cluster: LocalCluster, name: str, incarnation: str) -> None:
    """Another life of it serves."""

    async def is_back() -> bool:
        worker = (await status(cluster)).get(name)
        return bool(worker and worker.serving and worker.member.worker.incarnation != incarnation)

    await until(is_back, 60.0)


async def first_good(client: AsyncClient) -> float:
    """Seconds until a prompt is handed over again."""
    begun = time.monotonic()
    number = 200
    while True:
        answer = await client.generate(
            token_ids=prompt_of(number, 50), temperature=0.0, max_tokens=4, ignore_eos=True
        ).result()
        assert list(answer.token_ids) == expected(prompt_of(number, 50), 4)
        if answer.accepted.prefill_worker == "prefill-0" and not answer.timeline.recomputes:
            return time.monotonic() - begun
        number += 1


async def killed_and_restarted(folder: Path, kind: str, *, num_times: int, num_asked: int) -> None:
    async with running(folder, kind) as (cluster, client):
        pids = {name: child.pid for name, child in cluster.children.items()}
        await ask_many(client, range(num_asked))

        async def all_were_handed_over() -> bool:  # reports are a moment late
            return await counted(cluster, "hand_overs_received") == num_asked

        await until(all_were_handed_over, 5.0)
        assert await counted(cluster, "hand_over_recomputes") == 0
        for _ in range(num_times):
            life = (await status(cluster))["prefill-0"].member.worker.incarnation
            asking = asyncio.create_task(ask_many(client, range(num_asked)))
            await asyncio.sleep(0.05)  # somewhere in the middle
            os.kill(cluster.children["prefill-0"].pid, signal.SIGKILL)
            killed = time.monotonic()
            await asking
            await until(lambda: is_all_free(cluster), 5.0)
            freed_s = time.monotonic() - killed
            await until_back(cluster, "prefill-0", life)
            good_s = await first_good(client)
            print(f"{kind}: all free {freed_s:.2f} s after a kill, in use {good_s:.2f} s after")
            assert good_s < 2.0
        assert {name: child.pid for name, child in cluster.children.items() if name[0] == "d"} == {
            name: pid for name, pid in pids.items() if name[0] == "d"
        }


@pytest.mark.alone
@pytest.mark.parametrize("kind", QUICK)
async def test_a_killed_writer_frees_all_and_its_next_life_is_used(
    tmp_path: Path, kind: str
) -> None:
    await killed_and_restarted(tmp_path, kind, num_times=1, num_asked=12)


@pytest.mark.prove
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
async def test_writers_killed_again_and_again(tmp_path: Path, kind: str) -> None:
    await killed_and_restarted(tmp_path, kind, num_times=8, num_asked=50)


@pytest.mark.prove
@pytest.mark.parametrize("kind", KINDS)
async def test_a_killed_receiver_leaves_nothing_at_its_writers(tmp_path: Path, kind: str) -> None:
    async with running(tmp_path, kind) as (cluster, client):
        asking = asyncio.create_task(ask_many(client, range(40)))
        await asyncio.sleep(0.05)
        life = (await status(cluster))["decode-0"].member.worker.incarnation
        os.kill(cluster.children["decode-0"].pid, signal.SIGKILL)
        killed = time.monotonic()
        await asking
        await until(lambda: is_all_free(cluster), 5.0)
        print(f"{kind}: all free {time.monotonic() - killed:.2f} s after its receiver was killed")
        await until_back(cluster, "decode-0", life)
        await ask_many(client, range(40, 60))


@pytest.mark.prove
@pytest.mark.parametrize("kind", KINDS)
async def test_clients_that_leave_free_all_within_a_second(tmp_path: Path, kind: str) -> None:
    async with running(tmp_path, kind) as (cluster, client):
        prompts = [prompt_of(number, 100) for number in range(24)]
        asking = [asyncio.create_task(ask(client, prompt, 300)) for prompt in prompts]

        async def is_busy() -> bool:
            loads = [worker.load for worker in (await status(cluster)).values()]
            return sum(load.num_running for load in loads) >= 8

        await until(is_busy, 10.0)
        for task in asking:
            task.cancel()
        left = time.monotonic()
        await asyncio.gather(*asking, return_exceptions=True)
        await until(lambda: is_all_free(cluster), 5.0)
        freed_s = time.monotonic() - left
        print(f"{kind}: all free {freed_s:.2f} s after their clients left")
        assert freed_s < 1.0
