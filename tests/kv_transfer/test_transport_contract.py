"""What every transport keeps. A new one is a line in `open_pair`."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import TransferFailed
from cluster.types import Incarnation
from kv_transfer.gated_transport import GatedTransport
from kv_transfer.layout import SpanPairs
from kv_transfer.memory_transport import MemoryNetwork
from kv_transfer.shared_memory_transport import SharedMemoryTransport
from kv_transfer.span_copy import Bytes
from kv_transfer.transport import Landed, PoolConfig, Transport, WriteRefused

NUM_BYTES = 3 * 1024 * 1024


@dataclass
class Pair:
    ours: Transport
    theirs: Transport

    @property
    def source(self) -> Bytes:
        return np.frombuffer(self.ours.buffer, dtype=np.uint8)

    @property
    def destination(self) -> Bytes:
        return np.frombuffer(self.theirs.buffer, dtype=np.uint8)

    def write(self, pairs: SpanPairs, *, epoch: int = 1, may: bool = True) -> Future[Landed]:
        peer = self.ours.connect(self.theirs.address)
        return self.ours.write(peer, pairs, epoch=epoch, digest=True, may_start=lambda: may)


def open_pair(kind: str, run_dir: Path) -> Pair:
    if kind == "memory":
        network = MemoryNetwork()
        return Pair(network.open("a", NUM_BYTES), network.open("b", NUM_BYTES))

    def open_pool(name: str) -> Transport:
        return SharedMemoryTransport(
            PoolConfig(incarnation=Incarnation(name), num_bytes=NUM_BYTES, run_dir=run_dir)
        )

    pair = Pair(open_pool("a"), open_pool("b"))
    return Pair(GatedTransport(pair.ours), pair.theirs) if kind == "gated" else pair


@pytest.fixture(params=["memory", "shared_memory", "gated"])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    pair = open_pair(request.param, tmp_path)
    pair.source[:] = np.random.default_rng(0).integers(1, 255, NUM_BYTES, dtype=np.uint8)
    yield pair
    pair.ours.close()
    pair.theirs.close()


def spans_of(*spans: tuple[int, int, int]) -> SpanPairs:
    source, destination, sizes = np.array(spans, dtype=np.int64).T
    return SpanPairs(source=source, destination=destination, sizes=sizes)


async def test_a_pool_begins_writable_and_zeroed(pair: Pair) -> None:
    assert len(pair.theirs.buffer) == NUM_BYTES
    assert not pair.theirs.buffer.readonly
    assert not pair.destination.any()


@pytest.mark.parametrize(
    "spans",
    [
        [(0, 0, NUM_BYTES)],
        [(5, 700_001, 300_000), (400_000, 3, 1)],
        [(64 * i, 64 * ((i * 7919) % 20_000), 64) for i in range(20_000)],
        [(3 * i, 7 * i + 1, 3) for i in range(1000)],
    ],
)
async def test_bytes_land_where_they_should_and_nowhere_else(
    pair: Pair, spans: list[tuple[int, int, int]]
) -> None:
    expected = np.zeros(NUM_BYTES, dtype=np.uint8)
    for source, destination, size in spans:
        expected[destination : destination + size] = pair.source[source : source + size]
    landed = await asyncio.wrap_future(pair.write(spans_of(*spans)))
    assert np.array_equal(pair.destination, expected)
    assert landed.num_bytes == sum(size for _, _, size in spans)
    again = await asyncio.wrap_future(pair.write(spans_of(*spans)))
    assert again.digest == landed.digest is not None


async def test_writes_land_in_order_from_any_thread(pair: Pair) -> None:
    writes: list[Future[Landed]] = []
    peer = pair.ours.connect(pair.theirs.address)

    def write_all() -> None:
        writes.extend(
            pair.ours.write(
                peer, spans_of((i, 0, 1)), epoch=1, digest=False, may_start=lambda: True
            )
            for i in range(50)
        )

    thread = threading.Thread(target=write_all)
    thread.start()
    await asyncio.to_thread(thread.join)
    for write in writes:
        assert (await asyncio.wrap_future(write)).digest is None
    assert pair.destination[0] == pair.source[49]


@pytest.mark.parametrize(
    "span", [(NUM_BYTES - 1, 0, 2), (0, NUM_BYTES, 1), (-1, 0, 1), (0, -1, 1), (0, 0, 0)]
)
async def test_a_span_outside_its_pool_moves_nothing(
    pair: Pair, span: tuple[int, int, int]
) -> None:
    with pytest.raises(ValueError, match="outside"):
        await asyncio.wrap_future(pair.write(spans_of((0, 0, 1), span)))
    assert not pair.destination.any()
    await asyncio.wrap_future(pair.write(spans_of((0, 0, 1))))  # and the writer goes on


async def test_a_refused_write_moves_nothing(pair: Pair) -> None:
    with pytest.raises(WriteRefused):
        await asyncio.wrap_future(pair.write(spans_of((0, 0, 9)), may=False))
    assert not pair.destination.any()


async def test_a_cancelled_write_moves_nothing(pair: Pair) -> None:
    hold, begun = threading.Event(), threading.Event()

    def held() -> bool:
        begun.set()
        return hold.wait(10)

    peer = pair.ours.connect(pair.theirs.address)
    first = pair.ours.write(peer, spans_of((0, 0, 1)), epoch=1, digest=False, may_start=held)
    second = pair.write(spans_of((0, 100, 9)))
    await asyncio.to_thread(begun.wait, 10)
    assert second.cancel()
    assert not first.cancel(), "what has begun is not cancelled"
    hold.set()
    await asyncio.wrap_future(first)
    assert pair.destination[0]
    assert not pair.destination[1:].any()


async def test_what_is_revoked_never_lands(pair: Pair) -> None:
    if not pair.theirs.revoke(7):
        return  # a transport may say that it cannot; then it has to be waited for
    with pytest.raises(WriteRefused):
        await asyncio.wrap_future(pair.write(spans_of((0, 0, 9)), epoch=7))
    await asyncio.wrap_future(pair.write(spans_of((0, 100, 9)), epoch=8))
    assert not pair.destination[:100].any()


async def test_an_address_names_one_peer(pair: Pair) -> None:
    peer = pair.ours.connect(pair.theirs.address)
    assert pair.ours.connect(pair.theirs.address) is peer
    assert peer.incarnation == "b"
    assert peer.num_bytes == NUM_BYTES
    assert not peer.life.is_over
    for address in ("", "nobody", pair.theirs.address + "x", "kv-\0:1:1:1"):
        with pytest.raises(TransferFailed):
            pair.ours.connect(address)


async def test_a_closed_transport_fails_its_writes(pair: Pair) -> None:
    peer = pair.ours.connect(pair.theirs.address)
    pair.ours.close()
    write = pair.ours.write(
        peer, spans_of((0, 0, 9)), epoch=1, digest=False, may_start=lambda: True
    )
    with pytest.raises((WriteRefused, CancelledError)):
        await asyncio.wrap_future(write)
    assert not pair.destination.any()


async def test_a_closed_gate_holds_a_write_and_a_failure_fails_it(tmp_path: Path) -> None:
    pair = open_pair("memory", tmp_path)
    pair.source[:] = 1
    gated = GatedTransport(pair.ours, in_the_middle=True)
    pair.ours = gated
    gated.close_gate()
    write = pair.write(spans_of((0, 0, 1), (1, 1, 1)))
    await asyncio.to_thread(gated.held.wait, 10)
    assert pair.destination[:2].tolist() == [1, 0]
    assert not write.done()
    gated.open_gate()
    await asyncio.wrap_future(write)
    assert pair.destination[:2].tolist() == [1, 1]
    gated.failure = OSError("unplugged")
    with pytest.raises(OSError, match="unplugged"):
        await asyncio.wrap_future(pair.write(spans_of((0, 0, 1))))
    gated.close()
    pair.theirs.close()
