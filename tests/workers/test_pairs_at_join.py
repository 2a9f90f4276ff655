"""Pairs are made before a worker serves, and kept; a probe moves bytes over the real path."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cluster.channel import Channel, open_channel
from cluster.errors import FingerprintMismatch, Overloaded, TransferFailed
from cluster.types import Role
from kv_transfer.transport import Transport
from penstock.v1 import worker_pb2
from tests.router.fake_worker import TOKEN
from tests.workers.answers import expected, greedy, prompt_of
from tests.workers.decoding import decode
from tests.workers.fetching import SLOT_BYTES, address, counted, ids, named, request, told
from tests.workers.local_cluster import LocalCluster, Running

PROMPT = prompt_of(2, 50)


class Counting:
    """A transport that counts who connects, and fails while `failure` says why."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.name, self.address = inner.name, inner.address
        self.failure = ""
        self.num_connects = 0

    async def connect(self, address: str) -> Any:
        self.num_connects += 1
        if self.failure:
            raise TransferFailed(self.failure)
        return await self.inner.connect(address)

    def close(self) -> None:
        self.inner.close()


def counting(checkpoint: Path, tmp_path: Path, **settings: Any) -> LocalCluster:
    return LocalCluster(
        checkpoint, tmp_path, disaggregate="always", wrap_transport=Counting, **settings
    )


def life(running: Running) -> Any:
    return running.worker.member.worker.incarnation


def knows(one: Running, other: Running) -> bool:
    return bool(one.worker.parts.pairs.is_connected(life(other)))


async def probe(receiver: Running, source: Running, **fields: Any) -> worker_pb2.ProbeResponse:
    asked = worker_pb2.ProbeRequest(source=address(source), **fields)
    async with open_channel(receiver.address, TOKEN) as channel:
        return await channel.unary("penstock.v1.Worker", "Probe", asked, timeout_s=20)


@pytest.mark.slow
async def test_nothing_remains_to_be_done_at_the_first_request(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with counting(checkpoint, tmp_path, decode=[{}, {}], prefill=[{}, {}]) as cluster:
        for decode_worker in cluster.decode:
            for prefill in cluster.prefill:
                assert knows(decode_worker, prefill)
                assert knows(prefill, decode_worker)
                assert counted(decode_worker, "transfer_bytes") >= 16 * SLOT_BYTES
        opened: list[str] = []
        monkeypatch.setattr(
            "worker.peers.open_channel",
            lambda where, *who: opened.append(where) or Channel(where, *who, []),
        )
        before = [running.transport.num_connects for running in cluster.workers]
        for number in range(8):
            prompt = prompt_of(number, 50)
            assert (await cluster.generate(greedy(prompt, 4))).token_ids == expected(prompt, 4)
        assert [running.transport.num_connects for running in cluster.workers] == before
        assert opened == []


@pytest.mark.slow
@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
async def test_a_worker_that_joins_later_has_its_pairs_before_it_serves(
    checkpoint: Path, tmp_path: Path, role: Role
) -> None:
    async with counting(checkpoint, tmp_path) as cluster:
        joined = await cluster.start_worker(role)  # returns when it says that it serves
        other = cluster.decode[0] if role is Role.PREFILL else cluster.prefill[0]
        assert knows(joined, other)
        assert knows(other, joined)


@pytest.mark.slow
async def test_a_pair_that_fails_is_tried_again_until_it_is_up(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with counting(checkpoint, tmp_path) as cluster:
        receiver = cluster.decode[0]
        receiver.transport.failure = "the cable is out"
        joined = await cluster.start_worker(Role.PREFILL)
        await cluster.until(lambda: counted(receiver, "pairs_refused") == 1)
        prompt_tokens = joined.worker.scheduler.counters()["computed_tokens"]
        asked = request(PROMPT, prefill=named(joined))
        messages = await decode(receiver, asked)
        assert ids(messages) == expected(PROMPT, 8)
        assert messages[-1].finished.timeline.recomputes == 1
        # What cannot be brought is not computed in vain.
        assert joined.worker.scheduler.counters()["computed_tokens"] == prompt_tokens
        receiver.transport.failure = ""
        await cluster.until(lambda: counted(receiver, "pairs_refused") == 0)
        assert knows(receiver, joined)
        messages = await decode(receiver, request(prompt_of(3, 50), prefill=named(joined)))
        assert messages[-1].finished.timeline.recomputes == 0


@pytest.mark.slow
async def test_a_required_transport_that_the_other_lacks_is_refused_loudly(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with counting(checkpoint, tmp_path, decode=[{"require_transport": "memory"}]) as cluster:
        other = address(cluster.prefill[0])
        other.transports.clear()
        other.transports["other"] = "there"
        other.incarnation = "another life"
        asked = request(PROMPT, prefill=told(cluster.decode[0], other))
        messages = await decode(cluster.decode[0], asked)
        assert ids(messages) == expected(PROMPT, 8)
        assert messages[-1].finished.timeline.recomputes == 1
        assert "has no transport 'memory'" in caplog.text


@pytest.mark.slow
async def test_a_newer_life_proves_that_the_last_is_over(checkpoint: Path, tmp_path: Path) -> None:
    async with counting(checkpoint, tmp_path) as cluster:
        receiver, old = cluster.decode[0], cluster.prefill[0]
        peer = await receiver.worker.parts.pairs.connect(old.worker.member.worker)
        old.task.cancel()
        cluster.prefill.remove(old)
        await cluster.start_worker(Role.PREFILL, worker_id="prefill-0")
        await cluster.until(lambda: peer.life.is_over)
        assert not knows(receiver, old)
        assert knows(receiver, cluster.prefill[0])


async def test_a_probe_says_what_moved_how_and_how_fast(checkpoint: Path, tmp_path: Path) -> None:
    async with LocalCluster(
        checkpoint, tmp_path, decode=[{"block_size": 8}, {}], prefill=[]
    ) as cluster:
        source, receiver = cluster.decode
        result = await probe(receiver, source, num_tokens=100)
        assert result.transport == "memory"
        assert result.num_tokens == 104  # whole blocks of the source
        assert result.num_bytes == 104 * SLOT_BYTES
        assert result.seconds >= result.write_seconds > 0
        assert (await probe(receiver, source)).num_tokens == 8
        assert (await probe(receiver, source, transport="memory")).transport == "memory"
        with pytest.raises(TransferFailed, match="no transport 'tcp'"):
            await probe(receiver, source, transport="tcp")


async def test_a_probe_moves_no_content_and_evicts_none(checkpoint: Path, tmp_path: Path) -> None:
    async with LocalCluster(
        checkpoint, tmp_path, decode=[{"num_blocks": 8}, {"num_blocks": 8}], prefill=[]
    ) as cluster:
        source, receiver = cluster.decode
        for running in cluster.decode:
            await decode(running, request(PROMPT))
            await decode(running, request(prompt_of(8, 40)))
        memory = receiver.worker.parts.pairs.pool.buffer
        before = bytes(memory)
        free = [running.pool.num_free for running in cluster.decode]
        result = await probe(receiver, source, num_tokens=10_000)
        assert result.num_tokens == 16 * min(free) > 0
        arrived = {now for was, now in zip(before, memory, strict=True) if was != now}
        assert len(arrived) == 1
        assert [running.pool.num_free for running in cluster.decode] == free
        for running in cluster.decode:  # all that was cached still is
            messages = await decode(running, request(PROMPT))
            assert messages[0].accepted.cached_tokens == 48


async def test_a_probe_without_room_or_with_a_stranger_says_so(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with LocalCluster(checkpoint, tmp_path, decode=[{}, {}], prefill=[]) as cluster:
        source, receiver = cluster.decode
        taken = receiver.pool.allocate(receiver.pool.num_available)
        with pytest.raises(Overloaded, match="no block free"):
            await probe(receiver, source)
        receiver.pool.release(taken)
        asked = worker_pb2.ProbeRequest(source=address(source))
        asked.source.fingerprint.model_digest = "another"
        async with open_channel(receiver.address, TOKEN) as channel:
            with pytest.raises(FingerprintMismatch, match="model_digest"):
                await channel.unary("penstock.v1.Worker", "Probe", asked, timeout_s=20)


@pytest.mark.slow
async def test_a_member_that_hangs_holds_up_a_start_for_a_moment_only(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with LocalCluster(checkpoint, tmp_path, prefill=[]) as cluster:
        receiver = cluster.decode[0]
        hung = asyncio.Event()
        receiver.worker._transfers.probes.probe = lambda *_, **__: hung.wait()
        async with asyncio.timeout(3):
            joined = await cluster.start_worker(Role.PREFILL)
        hung.set()
        assert joined.worker._is_serving()
