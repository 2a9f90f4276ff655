"""Both ends back to back over the in-process transport, as the workers drive them."""

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cluster.errors import DigestMismatch, TransferFailed
from cluster.types import Incarnation, KvLayout
from kv_transfer.geometry import SpanPairs
from kv_transfer.incoming import Reservation, ReservationTable
from kv_transfer.memory_transport import MemoryNetwork, MemoryTransport
from kv_transfer.outgoing import OutgoingTransfer
from kv_transfer.transfer import RemoteProtocolError, State
from kv_transfer.transport import WriteRefused, WriteUnsettled
from tests.kv_transfer.faulty_transport import FaultyTransport
from tests.kv_transfer.manual_timers import ManualTimers

SOURCE = KvLayout(num_layers=3, num_blocks=20, block_size=8, num_kv_heads=2, head_dim=4)
LAYOUT = KvLayout(num_layers=3, num_blocks=20, block_size=4, num_kv_heads=2, head_dim=4)


class Pair:
    """A writer and a receiver in one process."""

    def __init__(self, *, revokes: bool = True) -> None:
        self.network = MemoryNetwork(revokes=revokes)
        self.timers = ManualTimers()
        self.source = self.network.pool("writer", SOURCE.pool_bytes)
        self.pool = self.network.pool("receiver", LAYOUT.pool_bytes)
        self.writer = MemoryTransport(self.network, self.source)
        self.receiver = MemoryTransport(self.network, self.pool)
        self.released: list[tuple[int, ...]] = []
        self.abandoned: list[Reservation] = []
        self.table = ReservationTable(
            self.pool,
            LAYOUT,
            on_release=self.released.append,
            on_abandoned=self.abandoned.append,
            timers=self.timers,
        )
        memory = self.source.memory
        memory[:] = np.random.default_rng(0).integers(0, 255, len(memory), dtype=np.uint8)

    async def reserve(self, start: int = 0, stop: int = 30) -> Reservation:
        peer = await self.receiver.connect(self.writer.address)
        return self.table.reserve([9, 2, 4, 7, 1, 0, 3, 11], start, stop, lease_s=2.0, peer=peer)

    def outgoing(self) -> OutgoingTransfer:
        return OutgoingTransfer(
            layout=SOURCE,
            blocks=[5, 6, 1, 12],
            num_tokens=30,
            timers=self.timers,
        )

    async def grant(self, outgoing: OutgoingTransfer, reservation: Reservation) -> None:
        outgoing.grant(reservation.grant, await self.writer.connect(self.receiver.address), LAYOUT)

    def close(self) -> None:
        self.table.close()
        self.writer.close()
        self.receiver.close()


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    pair = Pair()
    yield pair
    pair.table.check()
    pair.close()


@pytest.fixture
async def shared() -> AsyncIterator[Pair]:
    """A pair whose transport cannot revoke."""
    pair = Pair(revokes=False)
    yield pair
    pair.table.check()
    pair.close()


def compute(outgoing: OutgoingTransfer, *stops: int) -> None:
    for stop in stops:
        for layer in range(SOURCE.num_layers):
            outgoing.computed(layer, stop)


@pytest.mark.parametrize("granted_after", [0, 1, 2])
async def test_chunks_arrive_verified_whenever_the_grant_comes(
    pair: Pair, granted_after: int
) -> None:
    outgoing = pair.outgoing()
    outgoing.computed_all(10)
    with await pair.reserve(start=6) as reservation:
        for chunk, stop in enumerate((17, 30)):
            if chunk == granted_after:
                await pair.grant(outgoing, reservation)
            compute(outgoing, stop)
        if granted_after == 2:
            await pair.grant(outgoing, reservation)
        written = await outgoing.landed()
        await reservation.verify(written)
    assert written.num_bytes == 3 * 2 * 24 * LAYOUT.slot_bytes
    assert pair.table.num_held_blocks == 0
    assert pair.released == [], "verified blocks belong to the caller"
    assert pair.table.counters.as_dict()["transfers_verified"] == 1
    source = pair.source.memory.reshape(3, 2, 20, 8, -1)
    here = pair.pool.memory.reshape(3, 2, 20, 4, -1)
    for token in range(6, 30):
        there = source[:, :, [5, 6, 1, 12][token // 8], token % 8]
        assert np.array_equal(here[:, :, reservation.grant.blocks[token // 4], token % 4], there)


async def test_a_range_of_nothing_is_written_at_once(pair: Pair) -> None:
    outgoing = pair.outgoing()
    with await pair.reserve(start=30) as reservation:
        await pair.grant(outgoing, reservation)
        written = await asyncio.wait_for(outgoing.landed(), 1)
        await reservation.verify(written)
    assert written.num_bytes == 0


@pytest.mark.parametrize(
    "change",
    [
        {"incarnation": Incarnation("another")},
        {"blocks": (9, 2, 4, 7, 1, 0, 3, 20)},
        {"blocks": (9, 2)},
        {"stop": 31},
        {"start": 31},
    ],
)
async def test_a_grant_that_cannot_be_true_is_refused(pair: Pair, change: dict[str, Any]) -> None:
    outgoing = pair.outgoing()
    outgoing.computed_all(30)
    with await pair.reserve() as reservation:
        peer = await pair.writer.connect(pair.receiver.address)
        with pytest.raises(RemoteProtocolError):
            outgoing.grant(replace(reservation.grant, **change), peer, LAYOUT)
        await asyncio.wait_for(outgoing.closed(), 1)
    assert not pair.pool.memory.any()


async def test_a_receiver_of_another_geometry_is_refused(pair: Pair) -> None:
    outgoing = pair.outgoing()
    with await pair.reserve() as reservation:
        peer = await pair.writer.connect(pair.receiver.address)
        layout = replace(LAYOUT, num_kv_heads=1, head_dim=8)
        with pytest.raises(RemoteProtocolError, match="head_dim: 4 and 8"):
            outgoing.grant(reservation.grant, peer, layout)


async def test_leaving_while_the_content_is_checked_gives_the_blocks_back_once(pair: Pair) -> None:
    outgoing = pair.outgoing()
    outgoing.computed_all(30)
    hold = threading.Event()
    pair.table._reader.submit(hold.wait)
    with await pair.reserve() as reservation:
        await pair.grant(outgoing, reservation)
        verifying = asyncio.ensure_future(reservation.verify(await outgoing.landed()))
        await asyncio.sleep(0)
        assert reservation.state is State.WRITTEN
    hold.set()
    with pytest.raises(TransferFailed, match="cancelled"):
        await verifying
    assert pair.released == [reservation.blocks]
    assert pair.table.counters.num_transfers == 0


async def test_nothing_lands_between_the_check_and_the_use(pair: Pair) -> None:
    """A writer that said `written` and writes on, where the receiving end can refuse it."""
    outgoing = pair.outgoing()
    outgoing.computed_all(30)
    hold = threading.Event()
    pair.table._reader.submit(hold.wait)
    with await pair.reserve() as reservation:
        await pair.grant(outgoing, reservation)
        verifying = asyncio.ensure_future(reservation.verify(await outgoing.landed()))
        await asyncio.sleep(0)
        peer = await pair.writer.connect(pair.receiver.address)
        block = np.array([9 * LAYOUT.block_bytes])
        again = SpanPairs(source=block * 0, destination=block, sizes=np.array([4]))
        late = peer.write(again, epoch=reservation.epoch, digest=False, may_start=lambda: True)
        try:
            with pytest.raises(WriteRefused):
                await asyncio.wrap_future(late)
        finally:
            hold.set()
        await verifying


async def test_a_writer_that_says_the_wrong_epoch_frees_nothing(shared: Pair) -> None:
    outgoing = shared.outgoing()
    outgoing.computed_all(30)
    with await shared.reserve() as reservation:
        await shared.grant(outgoing, reservation)
        written = await outgoing.landed()
        with pytest.raises(RemoteProtocolError):
            await reservation.verify(replace(written, epoch=written.epoch + 1))
    assert shared.table.num_quarantined_blocks == 8
    reservation.writer_closed("fenced")
    reservation.writer_closed("fenced")
    assert shared.released == [reservation.blocks]
    assert shared.table.counters.num_fenced == 1


async def test_nothing_is_written_before_it_is_computed(pair: Pair) -> None:
    outgoing = pair.outgoing()
    with await pair.reserve() as reservation:
        await pair.grant(outgoing, reservation)
        outgoing.computed(0, 30)
        outgoing.computed(1, 30)
        assert not outgoing.is_closed
        outgoing.stop("cancelled")
        await outgoing.closed()
        reservation.writer_closed("cancelled")
        assert pair.released == [], "the scope still holds them"
    assert pair.released == [reservation.blocks]
    with pytest.raises(TransferFailed, match="cancelled"):
        await outgoing.landed()


async def test_a_corrupted_byte_is_found_and_named(pair: Pair) -> None:
    outgoing = pair.outgoing()
    with await pair.reserve() as reservation:
        await pair.grant(outgoing, reservation)
        compute(outgoing, 30)
        written = await outgoing.landed()
        pool = pair.pool.memory.reshape(3, 2, 20, 4, -1)
        pool[1, 1, reservation.blocks[3], 2, 5] ^= 1
        with pytest.raises(DigestMismatch, match="layer 1"):
            await reservation.verify(written)
    assert pair.released == [reservation.blocks]
    assert pair.table.counters.failures[State.WRITTEN, "digest"] == 1  # type: ignore[index]


async def test_a_short_hand_over_is_refused(pair: Pair) -> None:
    for change in ({"stop": 29}, {"num_bytes": 5}, {"digests": ()}):
        outgoing = pair.outgoing()
        with await pair.reserve() as reservation:
            await pair.grant(outgoing, reservation)
            compute(outgoing, 30)
            written = await outgoing.landed()
            with pytest.raises(TransferFailed):
                await reservation.verify(replace(written, **change))
    assert len(pair.released) == 3


async def test_a_dead_writer_frees_and_a_lapsed_one_does_not(shared: Pair) -> None:
    with await shared.reserve() as reservation:
        shared.timers.advance(1.9)
        reservation.renew()
        shared.timers.advance(1.9)
        assert reservation.state is State.GRANTED
        shared.timers.advance(0.2)
        assert "lapsed" in await asyncio.wait_for(reservation.lost(), 1)
    assert shared.abandoned == [reservation]
    assert shared.table.num_quarantined_blocks == 8
    shared.timers.advance(1000)
    assert shared.released == []
    shared.network.kill("writer")
    assert shared.released == [reservation.blocks]


async def test_a_writer_whose_receiver_fell_silent_stops_and_closes(pair: Pair) -> None:
    outgoing = pair.outgoing()
    with await pair.reserve() as reservation:
        await pair.grant(outgoing, reservation)
        pair.timers.advance(1.9)
        outgoing.renew(reservation.epoch)
        outgoing.renew(reservation.epoch + 1)
        pair.timers.advance(1.9)
        assert not outgoing.is_closed
        pair.timers.advance(0.2)
        await asyncio.wait_for(outgoing.closed(), 1)
        outgoing.computed_all(30)
        with pytest.raises(TransferFailed, match="lapsed"):
            await outgoing.landed()


async def test_a_receiver_that_was_away_hears_what_has_arrived_before_it_says_lapsed(
    shared: Pair,
) -> None:
    with await shared.reserve() as reservation:
        shared.timers.advance(0.5)
        shared.timers.stand_still(8.0)
        assert reservation.state is State.GRANTED
        reservation.renew()  # it lay in a socket
        shared.timers.advance(1.9)
        assert reservation.state is State.GRANTED


async def test_a_writer_that_is_silent_when_its_receiver_is_back_lapses_after_what_was_left(
    shared: Pair,
) -> None:
    with await shared.reserve() as reservation:
        shared.timers.advance(0.5)
        shared.timers.stand_still(8.0)
        shared.timers.advance(1.4)
        assert reservation.state is State.GRANTED
        shared.timers.advance(0.4)
        assert reservation.state is State.ABANDONED


async def test_a_writer_that_was_away_itself_goes_by_the_true_clock(pair: Pair) -> None:
    outgoing = pair.outgoing()
    with await pair.reserve() as reservation:
        await pair.grant(outgoing, reservation)
        pair.timers.advance(0.5)
        pair.timers.stand_still(2.0)
        outgoing.computed_all(30)
        with pytest.raises(TransferFailed, match="lapsed"):
            await asyncio.wait_for(outgoing.landed(), 1)
        assert not pair.pool.memory.any()


class StoppedTimers(ManualTimers):
    """As after SIGSTOP: the clock went on, no timer has fired yet."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen_s = 0.0

    def now(self) -> float:
        return super().now() + self.frozen_s


async def test_a_writer_that_was_frozen_starts_no_write_after_its_lease(pair: Pair) -> None:
    timers = StoppedTimers()
    gated = FaultyTransport(pair.writer)
    outgoing = OutgoingTransfer(layout=SOURCE, blocks=[5, 6, 1, 12], num_tokens=30, timers=timers)
    with await pair.reserve() as reservation:
        gated.close_gate()
        peer = await gated.connect(pair.receiver.address)
        outgoing.grant(reservation.grant, peer, LAYOUT)
        outgoing.computed_all(30)
        await asyncio.to_thread(gated.held.wait)
        timers.frozen_s = 3.0
        gated.open_gate()
        await asyncio.wait_for(outgoing.closed(), 1)
        here = pair.pool.memory.reshape(3, -1)
        assert here[0].any(), "the write in flight ended"
        assert not here[1:].any(), "and no other began"
    gated.close()


async def test_a_write_that_failed_and_may_still_land_is_not_closed(shared: Pair) -> None:
    """A network may deliver what its sender was told has failed: the blocks stay quarantined
    until the receiver's process, which still takes it in, or the writer's is dead."""
    outgoing = shared.outgoing()
    faulty = FaultyTransport(shared.writer)
    with await shared.reserve() as reservation:
        peer = await faulty.connect(shared.receiver.address)
        faulty.failure = WriteUnsettled("the line broke")
        outgoing.grant(reservation.grant, peer, LAYOUT)
        outgoing.computed_all(30)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(outgoing.closed(), 0.2)
    assert shared.abandoned == [reservation]
    assert shared.table.num_quarantined_blocks == len(reservation.blocks)
    shared.network.kill("receiver")
    await asyncio.wait_for(outgoing.closed(), 1)
    shared.network.kill("writer")
    assert shared.released == [reservation.blocks]
    faulty.close()


async def test_a_transport_that_revokes_frees_at_once(pair: Pair) -> None:
    outgoing = pair.outgoing()
    with await pair.reserve() as reservation:
        await pair.grant(outgoing, reservation)
    assert pair.released == [reservation.blocks]
    compute(outgoing, 30)
    with pytest.raises(TransferFailed):
        await outgoing.landed()
    assert not pair.pool.memory.any()
