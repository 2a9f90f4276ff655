"""A request names other workers by id and incarnation; what else is known of them, members tell.
Who is not known is not asked: the answer is the same."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cluster.types import Role, WorkerAddress
from penstock.v1 import worker_pb2
from tests.workers.answers import expected, prompt_of
from tests.workers.decoding import decode
from tests.workers.fetching import PROMPT, address, counted, ids, named, request, told, warm
from tests.workers.local_cluster import LocalCluster, Running

UNKNOWN = [("nobody", None), (None, "another life")]


def changed(running: Running, worker: str | None, life: str | None) -> worker_pb2.WorkerAddress:
    name = named(running)
    return worker_pb2.WorkerAddress(
        worker_id=worker or name.worker_id, incarnation=life or name.incarnation
    )


def known(one: Running, other: Running) -> WorkerAddress:
    name = named(other)
    facts: WorkerAddress = one.worker._transfers.peers.named(name.worker_id, name.incarnation)
    return facts


@pytest.mark.parametrize(("worker", "life"), UNKNOWN)
async def test_a_prompt_for_who_is_not_known_is_computed_here(
    checkpoint: Path, tmp_path: Path, caplog: Any, worker: str | None, life: str | None
) -> None:
    async with LocalCluster(checkpoint, tmp_path) as cluster:
        [receiver], [prefill] = cluster.decode, cluster.prefill
        messages = await decode(receiver, request(prefill=changed(prefill, worker, life)))
        assert ids(messages) == expected(PROMPT, 8)
        assert messages[-1].finished.timeline.recomputes == 1
        assert counted(receiver, "hand_over_recomputes") == 1
        assert "is not known here" in caplog.text
        assert prefill.worker.scheduler.counters()["computed_tokens"] == 0


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize(("worker", "life"), UNKNOWN)
async def test_a_prefix_of_who_is_not_known_is_computed(
    checkpoint: Path,
    tmp_path: Path,
    caplog: Any,
    worker: str | None,
    life: str | None,
    remote: bool,
) -> None:
    async with LocalCluster(checkpoint, tmp_path, decode=[{}, {}]) as cluster:
        source, receiver = cluster.decode
        [prefill] = cluster.prefill
        await warm(source)
        where = {"prefill": named(prefill)} if remote else {}
        asked = request(**where)
        asked.source.CopyFrom(changed(source, worker, life))
        assert ids(await decode(receiver, asked)) == expected(PROMPT, 8)
        assert counted(prefill if remote else receiver, "fetch_failures") == 1
        assert counted(source, "lent_tokens") == 0
        assert "is not known here" in caplog.text


async def test_facts_that_changed_count_as_members_tell_them(
    checkpoint: Path, tmp_path: Path, caplog: Any
) -> None:
    async with LocalCluster(checkpoint, tmp_path, decode=[{}, {}], prefill=[]) as cluster:
        source, receiver = cluster.decode
        await warm(source)
        elsewhere = address(source)
        elsewhere.fingerprint.kv_dtype = "bfloat16"
        asked = request()
        asked.source.CopyFrom(address(source))  # whatever whoever asks says of them
        told(receiver, elsewhere)
        assert ids(await decode(receiver, asked)) == expected(PROMPT, 8)
        assert counted(receiver, "fetch_failures") == 1
        assert "keeps KV as bfloat16" in caplog.text


async def test_a_prefill_worker_is_known_to_decode_workers_before_it_serves(
    checkpoint: Path, tmp_path: Path
) -> None:
    """It has introduced itself: its first prompt waits for no heartbeat."""
    async with LocalCluster(checkpoint, tmp_path, decode=[{}, {}], prefill=[]) as cluster:
        joined = await cluster.start_worker(Role.PREFILL)
        for number, receiver in enumerate(cluster.decode):
            prompt = prompt_of(number, 60)
            messages = await decode(receiver, request(prompt, prefill=named(joined)))
            assert ids(messages) == expected(prompt, 8)
            assert messages[-1].finished.timeline.recomputes == 0
            for one, other in ((receiver, joined), (joined, receiver)):
                assert known(one, other).address == other.address


async def test_a_borrower_that_is_not_known_is_lent_nothing(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with LocalCluster(checkpoint, tmp_path, decode=[{}, {}], prefill=[]) as cluster:
        lender, receiver = cluster.decode
        await warm(lender)
        peers = lender.worker._transfers.peers
        peers._lives.clear()  # as before the heartbeat that tells it
        assert ids(await decode(receiver, request(source=lender))) == expected(PROMPT, 8)
        assert counted(receiver, "fetch_failures") == 1
        assert counted(lender, "lent_tokens") == 0


@pytest.mark.slow
async def test_whoever_joins_is_known_to_all_within_a_heartbeat(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with LocalCluster(checkpoint, tmp_path, prefill=[]) as cluster:
        [receiver] = cluster.decode
        joined = await cluster.start_worker(Role.DECODE)
        peers = receiver.worker._transfers.peers
        life = joined.worker.member.worker.incarnation
        async with asyncio.timeout(3):
            await cluster.until(lambda: life in peers._lives.get(joined.name, {}))
        await warm(joined)
        assert ids(await decode(receiver, request(source=joined))) == expected(PROMPT, 8)
        assert counted(receiver, "fetch_failures") == 0
