"""What each end counts of the pairs that it is part of, and how it is reported."""

import time
from collections.abc import AsyncIterator
from typing import NamedTuple

import numpy as np
import pytest

from cluster.errors import DigestMismatch
from cluster.histogram import Histogram
from cluster.types import Direction, Incarnation, KvLayout, PairReport, WorkerId
from kv_transfer.incoming import Reservation, ReservationTable
from kv_transfer.life import Life
from kv_transfer.memory_transport import MemoryNetwork, MemoryTransport
from kv_transfer.outgoing import OutgoingTransfer
from kv_transfer.stats import BOUNDS_S, LAPSE_S, MAX_PAIRS, PairStats
from kv_transfer.transport import Peer
from tests.kv_transfer.manual_timers import ManualTimers

LAYOUT = KvLayout(num_layers=2, num_blocks=16, block_size=4, num_kv_heads=2, head_dim=4)
TOKEN_BYTES = LAYOUT.num_layers * 2 * LAYOUT.slot_bytes


class Ends:
    """A writer and a receiver in one process, each with its own statistics."""

    def __init__(self, *, revokes: bool = False) -> None:
        network = MemoryNetwork(revokes=revokes)
        self.network = network
        self.timers = ManualTimers()
        source, pool = (network.pool(name, LAYOUT.pool_bytes) for name in ("p-life", "d-life"))
        source.memory[:] = np.arange(len(source.memory), dtype=np.uint64).astype(np.uint8)
        self.memory = pool.memory
        self.writer = MemoryTransport(network, source)
        self.receiver = MemoryTransport(network, pool)
        self.sent, self.received = PairStats(), PairStats()
        self.sent.introduce(Incarnation("d-life"), WorkerId("decode-0"))
        self.received.introduce(Incarnation("p-life"), WorkerId("prefill-0"))
        self.table = ReservationTable(
            pool, LAYOUT, on_release=lambda _: None, stats=self.received, timers=self.timers
        )

    async def reserve(self) -> Reservation:
        peer = await self.receiver.connect(self.writer.address)
        return self.table.reserve([1, 2, 3], 0, 10, lease_s=2.0, peer=peer)

    async def granted(self, reservation: Reservation) -> OutgoingTransfer:
        outgoing = OutgoingTransfer(
            layout=LAYOUT, blocks=[4, 5, 6], num_tokens=10, stats=self.sent, timers=self.timers
        )
        peer = await self.writer.connect(self.receiver.address)
        outgoing.grant(reservation.grant, peer, LAYOUT)
        return outgoing

    def close(self) -> None:
        self.table.close()
        self.writer.close()
        self.receiver.close()


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    ends = Ends()
    yield ends
    ends.table.check()
    ends.close()


def only(reports: tuple[PairReport, ...]) -> PairReport:
    assert len(reports) == 1
    return reports[0]


async def test_both_ends_count_a_transfer_under_each_others_names(ends: Ends) -> None:
    with await ends.reserve() as reservation:
        outgoing = await ends.granted(reservation)
        outgoing.computed_all(10)
        await reservation.verify(await outgoing.landed())
    sent, received = (
        only(ends.sent.reports({})),
        only(ends.received.reports(ends.table.quarantined)),
    )
    assert (sent.peer, sent.direction) == ("decode-0", Direction.SENT)
    assert (received.peer, received.direction) == ("prefill-0", Direction.RECEIVED)
    for report in (sent, received):
        assert report.transport == "memory"
        assert (report.num_transfers, report.num_bytes) == (1, 10 * TOKEN_BYTES)
        assert report.write_seconds.counts[-1] == 1
        assert report.write_seconds.sum > 0
        assert report.failures == ()
    assert sent.num_spans == 2 * LAYOUT.num_layers
    assert received.verify_s > 0


async def test_a_corrupted_transfer_is_a_failure_of_its_pair(ends: Ends) -> None:
    with await ends.reserve() as reservation:
        outgoing = await ends.granted(reservation)
        outgoing.computed_all(10)
        written = await outgoing.landed()
        ends.memory[LAYOUT.block_bytes] ^= 1
        with pytest.raises(DigestMismatch):
            await reservation.verify(written)
    report = only(ends.received.reports(ends.table.quarantined))
    assert report.num_transfers == 0
    assert [(f.phase, f.reason, f.count) for f in report.failures] == [("written", "digest", 1)]


async def test_blocks_that_may_still_be_written_are_counted_by_who_may(ends: Ends) -> None:
    with await ends.reserve() as reservation:
        pass
    assert only(ends.received.reports(ends.table.quarantined)).num_quarantined_blocks == 3
    reservation.writer_closed("it was fenced")
    report = only(ends.received.reports(ends.table.quarantined))
    assert report.num_quarantined_blocks == 0
    assert [(f.phase, f.reason) for f in report.failures] == [("granted", "cancelled")]


async def test_what_is_heard_of_dead_epochs_is_counted(ends: Ends) -> None:
    with await ends.reserve() as reservation:
        reservation.writer_closed("it was full")
    reservation.writer_closed("again")
    assert only(ends.received.reports(ends.table.quarantined)).num_fenced == 1
    assert ends.table.counters.num_fenced == 1


async def test_the_writer_says_why_it_stopped(ends: Ends) -> None:
    with await ends.reserve() as reservation:
        outgoing = await ends.granted(reservation)
        ends.network.kill("d-life")
        await outgoing.closed()
    report = only(ends.sent.reports({}))
    assert [(f.phase, f.reason) for f in report.failures] == [("granted", "receiver_died")]
    assert report.num_transfers == 0


async def test_a_write_that_the_receiving_end_refuses_is_counted() -> None:
    ends = Ends(revokes=True)
    with await ends.reserve() as reservation:
        outgoing = await ends.granted(reservation)
    outgoing.computed(0, 10)
    await outgoing.closed()
    report = only(ends.sent.reports({}))
    assert report.num_refused_writes == 1
    assert [f.reason for f in report.failures] == ["write_failed"]
    ends.close()


class FakePeer(NamedTuple):
    incarnation: Incarnation
    life: Life
    transport: str = "tcp"


def peer(name: str) -> Peer:
    return FakePeer(Incarnation(name), Life())  # type: ignore[return-value]


async def test_a_worker_that_starts_again_keeps_its_pair() -> None:
    stats = PairStats()
    for life in ("first", "second"):
        stats.introduce(Incarnation(life), WorkerId("decode-0"))
        stats.sent(peer(life)).transferred(num_bytes=5, write_s=0.1)
    assert only(stats.reports({})).num_transfers == 2


async def test_pairs_long_gone_lapse_and_stay_in_the_totals() -> None:
    now = 0.0
    stats = PairStats(clock=lambda: now)
    dead, alive = peer("dead"), peer("alive")
    for each in (dead, alive):
        stats.received(each).transferred(num_bytes=7, write_s=0.1)
    dead.life.end()
    assert len(stats.reports({})) == 2, "a reader can still see how it ended"
    now = LAPSE_S + 1
    assert only(stats.reports({})).peer == "alive"
    assert stats.total(Direction.RECEIVED).num_bytes == 14


async def test_the_number_of_pairs_is_bounded() -> None:
    stats = PairStats()
    for number in range(MAX_PAIRS + 5):
        stats.sent(peer(f"p{number:04d}")).transferred(num_bytes=1, write_s=0.1)
    reports = stats.reports({})
    assert len(reports) == MAX_PAIRS
    assert reports[0].peer == "p0005", "those that moved nothing for longest are left out"
    assert stats.total(Direction.SENT).num_transfers == MAX_PAIRS + 5


async def test_counting_a_transfer_costs_microseconds() -> None:
    stats, one = PairStats(), peer("p")
    begin = time.process_time()
    for _ in range(1000):
        stats.sent(one).transferred(num_bytes=1, write_s=0.01)
    assert time.process_time() - begin < 0.05, "50 us each, on a slow machine"


def test_buckets_are_cumulative_and_a_bound_is_in_its_bucket() -> None:
    histogram = Histogram(BOUNDS_S)
    for seconds in (BOUNDS_S[0], 0.0002, 0.5, 99.0):
        histogram.add(seconds)
    report = histogram.report()
    assert report.counts == (1, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 4)
    assert report.sum == pytest.approx(99.5003)
