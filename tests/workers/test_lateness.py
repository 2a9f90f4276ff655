"""Workers that were away: their loop is held, as if the process were stopped. What has arrived is
handled first, and nobody is blamed for the time.

All workers share one loop here, so all of them are away at once.
"""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import DeadlineExceeded
from cluster.lateness import AttentiveClock
from cluster.worker_codec import address_from_pb
from tests.kv_transfer.faulty_transport import FaultyTransport
from tests.workers.answers import expected, greedy, prompt_of
from tests.workers.decoding import decode
from tests.workers.fetching import PROMPT, address, counted, ids, request, warm
from tests.workers.local_cluster import LocalCluster, Running
from worker.writes import Writes

pytestmark = pytest.mark.slow
AWAY_S = 1.5


def be_away() -> None:
    time.sleep(AWAY_S)


def gated(checkpoint: Path, tmp_path: Path, **settings: Any) -> LocalCluster:
    return LocalCluster(
        checkpoint,
        tmp_path,
        decode=[settings, settings],
        prefill=[],
        door="shared_memory",
        wrap_transport=FaultyTransport,
    )


async def held(running: Running) -> None:
    assert await asyncio.to_thread(running.transport.held.wait, 10)


async def test_a_prompt_that_waits_at_a_prefill_worker_is_not_computed_here(
    checkpoint: Path, tmp_path: Path
) -> None:
    worker = {"lease_s": 0.6}
    async with LocalCluster(
        checkpoint, tmp_path, decode=[worker], prefill=[worker], disaggregate="always"
    ) as cluster:
        gate = cluster.prefill[0].gate
        gate.close()
        first = asyncio.create_task(cluster.generate(greedy(prompt_of(1, 60), 8)))
        await cluster.until(gate.reached.is_set)
        second = asyncio.create_task(cluster.generate(greedy(prompt_of(2, 60), 8)))
        await cluster.until(lambda: len(cluster.prefill[0].worker.scheduler.batcher.waiting) == 1)
        be_away()
        await asyncio.sleep(0.1)  # what has arrived is handled
        gate.open()
        assert (await first).token_ids == expected(prompt_of(1, 60), 8)
        answer = await second
        assert answer.token_ids == expected(prompt_of(2, 60), 8)
        assert answer.messages[-1].finished.timeline.recomputes == 0
        assert answer.messages[0].accepted.prefill_worker == "prefill-0"


async def test_a_claim_waits_for_blocks_only_while_we_are_here(
    checkpoint: Path, tmp_path: Path
) -> None:
    """The limit of a claim is over when blocks were not free for so long."""
    decode_settings = {"lease_s": 3.0, "grant_s": 1.0, "num_blocks": 8}
    async with LocalCluster(
        checkpoint, tmp_path, decode=[decode_settings], prefill=[{}], disaggregate="always"
    ) as cluster:
        blocks = cluster.decode[0].pool.allocate(7)
        asking = asyncio.create_task(cluster.generate(greedy(prompt_of(1, 60), 8)))
        elsewhere = cluster.decode[0].worker.scheduler._elsewhere
        await cluster.until(lambda: bool(elsewhere.claims))
        be_away()
        await asyncio.sleep(0.2)  # what has arrived is handled, signs of life among it
        cluster.decode[0].worker.scheduler.release(blocks)
        answer = await asking
        assert answer.token_ids == expected(prompt_of(1, 60), 8)
        assert answer.messages[-1].finished.timeline.recomputes == 0


async def test_a_fetch_whose_bytes_have_arrived_is_no_failure(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with gated(checkpoint, tmp_path, fetch_s=1.0) as cluster:
        source, receiver = cluster.decode
        await warm(source)
        source.transport.close_gate()
        asking = asyncio.create_task(decode(receiver, request(source=source)))
        await held(source)
        source.transport.open_gate()
        be_away()
        assert ids(await asking) == expected(PROMPT, 8)
        assert counted(receiver, "fetch_failures") == 0
        assert counted(receiver, "fetched_tokens") == 96


async def test_a_probe_whose_bytes_have_arrived_is_no_failure(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with gated(checkpoint, tmp_path) as cluster:
        source, receiver = cluster.decode
        probes = receiver.worker._transfers.probes
        there = address_from_pb(address(source))
        source.transport.close_gate()
        probing = asyncio.create_task(probes.probe(there, 16, limit_s=1.0))
        await held(source)
        source.transport.open_gate()
        be_away()
        assert (await probing).num_tokens == 16
        source.transport.close_gate()
        with pytest.raises(DeadlineExceeded):
            await probes.probe(there, 16, limit_s=0.5)
        source.transport.open_gate()


async def test_a_step_is_not_late_for_the_time_that_its_process_was_away(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with LocalCluster(checkpoint, tmp_path, prefill=[]) as cluster:
        running = cluster.decode[0]
        monitor = running.worker.monitor
        monitor._floor_s = 1.0
        running.gate.close()
        asking = asyncio.create_task(cluster.generate(greedy(prompt_of(1, 40), 5)))
        await cluster.until(running.gate.reached.is_set)
        be_away()
        for _ in range(3):
            assert running.worker.load().is_serving
            await asyncio.sleep(0)
        await cluster.until(lambda: not running.worker.load().is_serving)
        running.gate.open()
        assert (await asking).token_ids == expected(prompt_of(1, 40), 5)


class InFlight:
    """A transfer with writes in flight since then."""

    def __init__(self, writing_since: float) -> None:
        self.writing_since = writing_since
        self.landed_at = float("-inf")
        self.receiver = "d0"


def test_what_our_own_absence_held_up_does_not_stand_still() -> None:
    absent_s = 0.0
    attention = AttentiveClock(lambda: time.monotonic() + absent_s - 9.0)
    writes: Any = Writes(Any, Any, attention, digest=True)  # type: ignore[arg-type]
    transfer = InFlight(time.monotonic() - 9.5)
    writes._open = {transfer: transfer}
    assert writes.stand_still(transfer, 3.0)
    absent_s = 9.0
    attention.now()
    assert not writes.stand_still(transfer, 3.0)
