"""The torch thread computes while the event loop grants, stops and verifies."""

import asyncio
import random
import threading
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import TransferFailed
from cluster.types import Incarnation, KvLayout
from kv_transfer.incoming import ReservationTable
from kv_transfer.outgoing import OutgoingTransfer
from kv_transfer.pool import FilePool, PoolConfig
from kv_transfer.shared_memory_transport import SharedMemoryTransport

LAYOUT = KvLayout(num_layers=6, num_blocks=128, block_size=8, num_kv_heads=2, head_dim=32)
NUM_TOKENS = 100


def open_pool(name: str, run_dir: Path) -> FilePool:
    return FilePool(
        PoolConfig(incarnation=Incarnation(name), num_bytes=LAYOUT.pool_bytes, run_dir=run_dir)
    )


@pytest.mark.slow
async def test_every_hand_over_is_verified_or_given_back(tmp_path: Path) -> None:
    pools = open_pool("writer", tmp_path), open_pool("receiver", tmp_path)
    writer, receiver = map(SharedMemoryTransport, pools)
    pools[0].memory[:] = np.arange(LAYOUT.pool_bytes) % 251
    released: list[tuple[int, ...]] = []
    table = ReservationTable(pools[1], LAYOUT, on_release=released.append)
    chances = random.Random(0)

    async def hand_over(first_block: int) -> bool:
        blocks = list(range(first_block, first_block + 13))
        outgoing = OutgoingTransfer(layout=LAYOUT, blocks=blocks[::-1], num_tokens=NUM_TOKENS)

        def compute() -> None:
            for stop in (30, 60, NUM_TOKENS):
                for layer in range(LAYOUT.num_layers):
                    outgoing.computed(layer, stop)

        thread = threading.Thread(target=compute)
        peer = await receiver.connect(writer.address)
        with table.reserve(blocks, 0, NUM_TOKENS, lease_s=60, peer=peer) as reservation:
            thread.start()
            if chances.random() < 0.5:
                await asyncio.sleep(0)
            there = await writer.connect(receiver.address)
            outgoing.grant(reservation.grant, there, LAYOUT)
            if chances.random() < 0.3:
                await asyncio.sleep(0)
                outgoing.stop("cancelled")
            try:
                await reservation.verify(await outgoing.landed())
            except TransferFailed:
                reservation.writer_closed("it was stopped")
        await asyncio.to_thread(thread.join)
        assert outgoing.is_closed
        return reservation.failure is None

    outcomes: list[bool] = []
    for _ in range(30):
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(hand_over(first)) for first in range(0, 104, 13)]
        outcomes.extend(task.result() for task in tasks)
        table.check()
    assert table.num_held_blocks == 0
    assert len(released) == outcomes.count(False)
    assert table.counters.num_transfers == outcomes.count(True) > 100
    table.close()
    for each in (writer, receiver, *pools):
        each.close()
