"""KV by gloo between processes: what is written, and what happens when the receiver is killed,
frozen or restarted in the middle of a write."""

import asyncio
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import xxhash

from cluster.errors import TransferFailed
from kv_transfer.collective.transport import CollectivePeer, CollectiveTransport
from kv_transfer.geometry import SpanPairs
from kv_transfer.transport import Landed
from tests.kv_transfer.collective_process import KEY, NUM_BYTES, open_pool, receiver

STALL_S = 0.5

pytestmark = pytest.mark.slow


class Writer:
    def __init__(self, run_dir: Path) -> None:
        self.pool = open_pool("writer", run_dir)
        self.pool.memory[:] = 1
        self.transport = CollectiveTransport(
            "gloo", self.pool, host="127.0.0.1", key=KEY, stall_s=STALL_S
        )


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    writer = Writer(tmp_path)
    yield writer
    writer.transport.close()
    writer.pool.close()


def write(peer: CollectivePeer, num_bytes: int = NUM_BYTES) -> "Future[Landed]":
    one = np.array([num_bytes], dtype=np.int64)
    pairs = SpanPairs(source=one * 0, destination=one * 0, sizes=one)
    return peer.write(pairs, epoch=1, digest=True, may_start=lambda: True)


async def landed(write: "Future[Landed]") -> Landed:
    async with asyncio.timeout(20):
        return await asyncio.wrap_future(write)


async def test_bytes_reach_another_process_with_their_digest(
    tmp_path: Path, writer: Writer
) -> None:
    writer.pool.memory[:] = np.random.default_rng(0).integers(1, 255, NUM_BYTES, dtype=np.uint8)
    with receiver(tmp_path, "receiver") as there:
        peer = await writer.transport.connect(there.address)
        await there.ask("admit", writer.transport.address)
        done = await landed(write(peer))
        assert done.digest == xxhash.xxh3_64_intdigest(writer.pool.memory.data)
        assert done.num_bytes == NUM_BYTES
        assert await there.ask("sum") == int(writer.pool.memory.sum())


async def test_a_killed_receiver_fails_the_write_in_flight_and_no_other(
    tmp_path: Path, writer: Writer
) -> None:
    """While it is frozen, and when it dies, another receiver is written to as ever."""
    with receiver(tmp_path, "receiver") as there, receiver(tmp_path, "other") as other:
        peer = await writer.transport.connect(there.address)
        beside = await writer.transport.connect(other.address)
        await there.ask("admit and freeze", writer.transport.address)
        await other.ask("admit", writer.transport.address)
        in_flight, queued = write(peer), write(peer)
        assert await there.hear() == "frozen"
        await landed(write(beside))
        assert not in_flight.done()
        there.signal(signal.SIGKILL)
        begin = time.monotonic()
        with pytest.raises(TransferFailed):
            await landed(in_flight)
        assert time.monotonic() - begin < STALL_S, "a death is not waited for like a silence"
        await asyncio.wait_for(peer.life.wait(), 1)
        assert queued.cancelled() or isinstance(queued.exception(10), TransferFailed)
        with pytest.raises(TransferFailed):
            await writer.transport.connect(there.address)
        await landed(write(beside))
        assert await other.ask("sum") == NUM_BYTES


async def test_a_frozen_receiver_lets_nothing_land_when_it_wakes_up(
    tmp_path: Path, writer: Writer
) -> None:
    with receiver(tmp_path, "receiver") as there:
        peer = await writer.transport.connect(there.address)
        await there.ask("admit and freeze", writer.transport.address)
        write_ = write(peer)
        assert await there.hear() == "frozen"
        with pytest.raises(TransferFailed, match="frozen"):
            await landed(write_)
        assert not peer.life.is_over, "it may wake up"
        there.signal(signal.SIGCONT)
        assert await there.ask("sum") == 0
        await there.ask("admit", writer.transport.address)
        await landed(write(peer, 1000))  # over a new line
        assert await there.ask("sum") == 1000
        assert await there.ask("revoke", writer.transport.address)
        with pytest.raises(TransferFailed):
            await landed(write(peer))
        assert await there.ask("sum") == 1000


async def test_a_restarted_receiver_is_another(tmp_path: Path, writer: Writer) -> None:
    with receiver(tmp_path, "first-life") as first:
        old = await writer.transport.connect(first.address)
        first.signal(signal.SIGKILL)
        await asyncio.wait_for(old.life.wait(), 1)
    with receiver(tmp_path, "second-life") as second:
        incarnation, rest = second.address.split(" ", 1)
        assert incarnation == "second-life"
        with pytest.raises(TransferFailed, match="second-life"):
            await writer.transport.connect(f"first-life {rest}")
        peer = await writer.transport.connect(second.address)
        await second.ask("admit", writer.transport.address)
        await landed(write(peer, 10))
        assert await second.ask("sum") == 10
        with pytest.raises(TransferFailed):
            await landed(write(old))
