"""What every transport keeps. A new one is a line in `open_pair`."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.errors import TransferFailed
from cluster.types import Incarnation
from kv_transfer.conversion import conversion_between
from kv_transfer.device_pool import DevicePool
from kv_transfer.doors import DOORS, DoorSettings, open_doors
from kv_transfer.geometry import SpanPairs
from kv_transfer.memory_transport import MemoryNetwork, MemoryTransport
from kv_transfer.pool import FilePool, KvPool, PoolConfig
from kv_transfer.transport import Landed, Transport, WriteRefused
from tests.kv_transfer.device_bytes import DeviceBytes
from tests.kv_transfer.faulty_transport import FaultyTransport

NUM_BYTES = 3 * 1024 * 1024


@dataclass
class End:
    pool: KvPool
    transport: Transport


class Pair:
    """We write, they receive: in epochs 1 and 8 wherever we like, in no other."""

    def __init__(self, ours: End, theirs: End) -> None:
        self.ours, self.theirs = ours.transport, theirs.transport
        self.pools = (ours.pool, theirs.pool)
        self.source, self.destination = bytes_of(ours.pool), bytes_of(theirs.pool)

    async def connect(self) -> None:
        self.peer = await self.ours.connect(self.theirs.address)
        self.writer = await self.theirs.connect(self.ours.address)
        for epoch in (1, 8):
            self.writer.admit(epoch, lambda spans: True)

    def write(self, pairs: SpanPairs, *, epoch: int = 1, may: bool = True) -> Future[Landed]:
        return self.peer.write(pairs, epoch=epoch, digest=True, may_start=lambda: may)

    def close(self) -> None:
        for end in (self.ours, self.theirs, *self.pools):
            end.close()


# Over pools in tensors: the door, and the device of each end.
ON_DEVICES = {
    "gloo, tensors": ("gloo", {"a": "cpu", "b": "cpu"}),
    "gloo, cuda": ("gloo", {"a": "cuda:0", "b": "cuda:0"}),
    "nccl": ("nccl", {"a": "cuda:0", "b": "cuda:1"}),  # which wants a GPU for each rank
}
# To open these takes longer than the quick tier has.
SLOW_KINDS = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("nixl", "gloo, tensors")]
KINDS = ["memory", "faulty", *(door for door in DOORS if door not in {*ON_DEVICES, "nixl"})]
KINDS_WITH_GPU = [pytest.param(kind, marks=pytest.mark.gpu) for kind in ("gloo, cuda", "nccl")]


def bytes_of(pool: Any) -> Any:
    return DeviceBytes(pool) if isinstance(pool, DevicePool) else pool.memory


def open_pair(kind: str, run_dir: Path) -> Pair:
    """`kind` is a door's name, the in-memory twin, or a wrapper that can bring faults into one."""
    network = MemoryNetwork()

    def open_end(name: str) -> End:
        if kind == "memory":
            pool: Any = network.pool(name, NUM_BYTES)
            return End(pool, MemoryTransport(network, pool))
        config = PoolConfig(incarnation=Incarnation(name), num_bytes=NUM_BYTES, run_dir=run_dir)
        door = "shared_memory" if kind == "faulty" else kind
        if kind in ON_DEVICES:
            door, devices = ON_DEVICES[kind]
            device_pool = DevicePool(config.incarnation, NUM_BYTES, devices[name])
            [transport] = open_doors([door], device_pool, DoorSettings(key=b"of the cluster"))
            return End(device_pool, transport)
        pool = FilePool(config)
        [transport] = open_doors([door], pool, DoorSettings(key=b"of the cluster"))
        return End(pool, transport)

    ours, theirs = open_end("a"), open_end("b")
    if kind == "faulty":
        ours = End(ours.pool, FaultyTransport(ours.transport))
    return Pair(ours, theirs)


@pytest.fixture(params=[*KINDS, *SLOW_KINDS, *KINDS_WITH_GPU])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    if request.param == "nccl" and torch.cuda.device_count() < 2:
        pytest.skip("NCCL wants a GPU for each rank, and here are not two.")
    pair = open_pair(request.param, tmp_path)
    await pair.connect()
    pair.source[:] = np.random.default_rng(0).integers(1, 255, NUM_BYTES, dtype=np.uint8)
    yield pair
    pair.close()


def spans_of(*spans: tuple[int, int, int]) -> SpanPairs:
    source, destination, sizes = np.array(spans, dtype=np.int64).T
    return SpanPairs(source=source, destination=destination, sizes=sizes)


async def test_a_pool_begins_writable_and_zeroed(pair: Pair) -> None:
    assert len(pair.pools[1].buffer) == NUM_BYTES
    assert not pair.destination.any()
    pair.pools[1].buffer[7] = 1
    assert pair.destination[:9].tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 0]


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


@pytest.mark.parametrize("rows_per_span", [1, 4000])
@pytest.mark.parametrize(
    ("source", "wire_dtype", "destination"),
    [
        ("bfloat16", None, "float32"),
        ("float32", "int8", "float32"),
        ("float32", "bfloat16", "bfloat16"),
    ],
)
async def test_what_is_converted_lands_as_the_destinations_numbers(
    pair: Pair, source: str, wire_dtype: str | None, destination: str, rows_per_span: int
) -> None:
    """And the digest is of what must lie there."""
    row, num_spans = 8, 8000 // rows_per_span
    conversion = conversion_between(source, destination, row, wire_dtype=wire_dtype)
    assert conversion is not None
    numbers = np.random.default_rng(1).standard_normal(NUM_BYTES // 4).astype(np.float32)
    pair.source[:] = numbers.view(np.uint8)
    order = np.random.default_rng(2).permutation(num_spans).astype(np.int64)
    pairs = SpanPairs(
        source=order * (rows_per_span + 1) * conversion.source_row_bytes,
        destination=np.arange(num_spans) * (rows_per_span + 2) * conversion.destination_row_bytes,
        sizes=np.full(num_spans, rows_per_span * conversion.source_row_bytes),
        conversion=conversion,
    )
    expected = np.zeros(NUM_BYTES, dtype=np.uint8)
    for one in pairs:
        data = np.array(pair.source[one.source : one.source + one.num_bytes])
        there = conversion.decode(conversion.encode(data))
        expected[one.destination : one.destination + len(there)] = there
    landed = await asyncio.wrap_future(pair.write(pairs))
    assert np.array_equal(pair.destination, expected)
    assert landed.num_bytes == pairs.num_bytes
    assert landed.digest == pair.pools[1].digester()(pairs.destination_spans)


async def test_writes_land_in_order_from_any_thread(pair: Pair) -> None:
    writes: list[Future[Landed]] = []

    def write_all() -> None:
        writes.extend(
            pair.peer.write(spans_of((i, 0, 1)), epoch=1, digest=False, may_start=lambda: True)
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

    first = pair.peer.write(spans_of((0, 0, 1)), epoch=1, digest=False, may_start=held)
    second = pair.write(spans_of((0, 100, 9)))
    await asyncio.to_thread(begun.wait, 10)
    assert second.cancel()
    assert not first.cancel(), "what has begun is not cancelled"
    hold.set()
    await asyncio.wrap_future(first)
    assert pair.destination[0]
    assert not pair.destination[1:].any()


async def test_what_is_revoked_never_lands(pair: Pair) -> None:
    pair.writer.admit(7, lambda spans: True)
    await asyncio.wrap_future(pair.write(spans_of((0, 200, 9)), epoch=7))
    if not pair.writer.revoke(7):
        return  # a transport may say that it cannot; then it has to be waited for
    with pytest.raises(WriteRefused):
        await asyncio.wrap_future(pair.write(spans_of((0, 0, 9)), epoch=7))
    await asyncio.wrap_future(pair.write(spans_of((0, 100, 9)), epoch=8))
    assert not pair.destination[:100].any()


async def test_an_epoch_that_was_not_admitted_does_not_land(pair: Pair) -> None:
    """Nor a span outside what was lent: where the receiving end takes part."""
    pair.writer.admit(9, lambda spans: bool((spans.offsets >= 1000).all()))
    if not pair.writer.revoke(10):
        return  # it does not: whoever is connected can write
    for epoch, offset in ((11, 1000), (9, 0)):
        with pytest.raises(TransferFailed):
            await asyncio.wrap_future(pair.write(spans_of((0, offset, 9)), epoch=epoch))
    assert not pair.destination.any()
    await asyncio.wrap_future(pair.write(spans_of((0, 1000, 9)), epoch=9))
    assert pair.destination[1000:1009].all()


async def test_an_address_names_one_peer(pair: Pair) -> None:
    peer = pair.peer
    assert await pair.ours.connect(pair.theirs.address) is peer
    assert peer.transport == pair.ours.name
    assert peer.incarnation == "b"
    assert peer.num_bytes == NUM_BYTES
    assert not peer.life.is_over
    for address in ("", "nobody", pair.theirs.address + "x", "kv-\0:1:1:1"):
        with pytest.raises(TransferFailed):
            await pair.ours.connect(address)


async def test_a_closed_transport_fails_its_writes(pair: Pair) -> None:
    pair.ours.close()
    write = pair.write(spans_of((0, 0, 9)))
    with pytest.raises((WriteRefused, CancelledError)):
        await asyncio.wrap_future(write)
    assert not pair.destination.any()


async def test_a_closed_gate_holds_a_write_and_a_failure_fails_it(tmp_path: Path) -> None:
    pair = open_pair("memory", tmp_path)
    pair.source[:] = 1
    faulty = pair.ours = FaultyTransport(pair.ours)
    await pair.connect()
    faulty.close_gate()
    write = pair.write(spans_of((0, 0, 1), (1, 1, 1)))
    await asyncio.to_thread(faulty.held.wait, 10)
    assert pair.destination[:2].tolist() == [1, 0]
    assert not write.done()
    faulty.open_gate()
    await asyncio.wrap_future(write)
    assert pair.destination[:2].tolist() == [1, 1]
    faulty.failure = OSError("unplugged")
    with pytest.raises(OSError, match="unplugged"):
        await asyncio.wrap_future(pair.write(spans_of((0, 0, 1))))
    pair.close()
