"""The receiver against a writer in another process, that is stopped, killed or just slow."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from cluster.types import Incarnation, KvLayout, SpanDigest, Written
from kv_transfer.incoming import Reservation, ReservationTable
from kv_transfer.pool import FilePool, PoolConfig, sweep
from kv_transfer.shared_memory_transport import SharedMemoryTransport
from kv_transfer.transfer import State

WRITER = Path(__file__).with_name("writer_process.py")
LAYOUT = KvLayout(num_layers=2, num_blocks=40, block_size=4, num_kv_heads=1, head_dim=16)
BLOCKS = [0, 9, 7, 5, 11, 13, 2, 3, 30, 31, 32, 20, 21, 22, 23, 24]
LENT = frozenset(BLOCKS)

pytestmark = pytest.mark.slow


class Writer:
    def __init__(self, process: Process) -> None:
        self.process = process

    async def hear(self, *events: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            message: dict[str, Any] = json.loads(await self.process.stdout.readline())
        assert message["event"] in events, message
        return message

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)


@asynccontextmanager
async def spawned_writer(run_dir: Path, gate: str) -> AsyncIterator[Writer]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(WRITER), str(run_dir), gate, stdin=PIPE, stdout=PIPE,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    try:
        yield Writer(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


class Receiver:
    def __init__(self, run_dir: Path) -> None:
        config = PoolConfig(
            incarnation=Incarnation("receiver"), num_bytes=LAYOUT.pool_bytes, run_dir=run_dir
        )
        self.pool = FilePool(config)
        self.transport = SharedMemoryTransport(self.pool)
        self.released: list[tuple[int, ...]] = []
        self.table = ReservationTable(self.pool, LAYOUT, on_release=self.released.append)
        self.blocks = self.pool.memory.reshape(LAYOUT.num_layers, 2, LAYOUT.num_blocks, -1)

    async def reserve(self, writer: Writer, address: str, lease_s: float) -> Reservation:
        peer = await self.transport.connect(address)
        reservation = self.table.reserve(BLOCKS, 0, 64, lease_s=lease_s, peer=peer)
        grant = asdict(reservation.grant)
        message = {"grant": grant, "address": self.transport.address, "layout": asdict(LAYOUT)}
        writer.tell(json.dumps(message))
        return reservation

    def use_all_other_blocks(self) -> Callable[[], None]:
        """Fills what is not lent; returns the check that nobody wrote into it."""
        others = [block for block in range(LAYOUT.num_blocks) if block not in LENT]
        self.blocks[:, :, others] = 99

        def check() -> None:
            assert (self.blocks[:, :, others] == 99).all(), "a block in use changed"

        return check


@pytest.fixture
async def receiver(tmp_path: Path) -> AsyncIterator[Receiver]:
    receiver = Receiver(tmp_path)
    yield receiver
    receiver.table.check()
    receiver.table.close()
    receiver.transport.close()
    receiver.pool.close()


async def lost(reservation: Reservation) -> str:
    async with asyncio.timeout(10):
        return await reservation.lost()


async def test_a_hand_over_between_processes_is_verified(
    tmp_path: Path, receiver: Receiver
) -> None:
    async with spawned_writer(tmp_path, "open") as writer:
        ready = await writer.hear("ready")
        with await receiver.reserve(writer, ready["address"], lease_s=20) as reservation:
            message = await writer.hear("written")
            digests = tuple(
                SpanDigest(layer=layer, start=start, stop=stop, digest=digest)
                for layer, start, stop, digest in message["digests"]
            )
            written = Written(
                epoch=reservation.epoch,
                start=0,
                stop=64,
                digests=digests,
                num_bytes=message["num_bytes"],
                write_s=0.0,
            )
            await reservation.verify(written)
    assert (receiver.blocks[:, :, BLOCKS] == 7).all()
    assert receiver.released == []


async def test_a_frozen_writer_that_wakes_up_changes_no_block_in_use(
    tmp_path: Path, receiver: Receiver
) -> None:
    async with spawned_writer(tmp_path, "gated") as writer:
        ready = await writer.hear("ready")
        with await receiver.reserve(writer, ready["address"], lease_s=0.3) as reservation:
            await writer.hear("held")  # half a layer is written
            writer.signal(signal.SIGSTOP)
            assert "lapsed" in await lost(reservation)
        check = receiver.use_all_other_blocks()
        assert receiver.table.num_quarantined_blocks == len(BLOCKS)
        assert receiver.released == []
        before = receiver.blocks[:, :, BLOCKS].sum()

        writer.tell("open")
        writer.signal(signal.SIGCONT)
        await writer.hear("closed", "written")  # its own lease began a moment later
        check()
        assert receiver.blocks[:, :, BLOCKS].sum() > before, "it did write on, in quarantine"
        assert receiver.released == []
        reservation.writer_closed("it said so")
        assert receiver.released == [reservation.blocks]


async def test_a_writer_killed_in_the_middle_frees_its_blocks_at_once(
    tmp_path: Path, receiver: Receiver
) -> None:
    async with spawned_writer(tmp_path, "gated") as writer:
        ready = await writer.hear("ready")
        with await receiver.reserve(writer, ready["address"], lease_s=20) as reservation:
            await writer.hear("held")
            writer.signal(signal.SIGSTOP)
        assert reservation.state is State.ABANDONED
        assert receiver.released == []
        writer.signal(signal.SIGKILL)
        async with asyncio.timeout(1):
            await reservation.peer.life.wait()
        assert receiver.released == [reservation.blocks]
        assert sweep(tmp_path) == ["kv-writer"]


async def test_a_receiver_that_waits_hears_of_the_death(tmp_path: Path, receiver: Receiver) -> None:
    async with spawned_writer(tmp_path, "gated") as writer:
        ready = await writer.hear("ready")
        with await receiver.reserve(writer, ready["address"], lease_s=20) as reservation:
            await writer.hear("held")
            writer.signal(signal.SIGKILL)
            async with asyncio.timeout(1):
                assert "died" in await reservation.lost()
            assert receiver.released == [], "the scope still holds them"
    assert receiver.released == [reservation.blocks]


async def test_a_cancelled_hand_over_ends_with_the_write_in_flight(
    tmp_path: Path, receiver: Receiver
) -> None:
    async with spawned_writer(tmp_path, "gated") as writer:
        ready = await writer.hear("ready")
        with await receiver.reserve(writer, ready["address"], lease_s=20) as reservation:
            await writer.hear("held")
        writer.tell("stop")
        assert receiver.released == []
        writer.tell("open")
        assert "told to" in (await writer.hear("closed"))["reason"]
        assert not receiver.blocks[1].any()
        reservation.writer_closed("told to")
        assert receiver.released == [reservation.blocks]
