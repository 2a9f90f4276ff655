"""Requests over a transport that fails, and what the pairs count of it."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.kv_transfer.faulty_transport import Fault
from tests.router.cluster_of_fakes import Answer
from tests.workers.answers import expected, greedy, prompt_of
from tests.workers.local_cluster import LocalCluster

CONCURRENCY = 12
NUM_OUTPUT = 6
# Why a hand-over that was hit fails; those that are not here do no harm.
HARMFUL = {
    Fault.DROP: "digest",
    Fault.CORRUPT: "digest",
    Fault.TRUNCATE: "short",
    Fault.DISCONNECT: "writer_closed",
    Fault.STALL: "lapsed",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One answer: which pair it went by, how often it was recomputed, and how long it took."""

    pair: tuple[str, str]
    num_recomputes: int
    seconds: float


async def ask(cluster: LocalCluster, number: int) -> Outcome:
    """One request that shares no prefix with another; its answer is checked."""
    prompt = [number % 256, number // 256, *prompt_of(number, 20 + number % 50)]
    answer = Answer()
    begun = time.monotonic()
    await cluster.generate(greedy(prompt, NUM_OUTPUT), answer=answer, timeout_s=60)
    seconds = time.monotonic() - begun
    assert answer.is_complete
    assert answer.token_ids == expected(prompt, NUM_OUTPUT)
    accepted = answer.messages[0].accepted
    num_recomputes = answer.messages[-1].finished.timeline.recomputes
    return Outcome((accepted.prefill_worker, accepted.decode_worker), num_recomputes, seconds)


async def ask_all(cluster: LocalCluster, numbers: Sequence[int]) -> list[Outcome]:
    limit = asyncio.Semaphore(CONCURRENCY)

    async def bounded(number: int) -> Outcome:
        async with limit:
            return await ask(cluster, number)

    return await asyncio.gather(*map(bounded, numbers))


def failed_pairs(cluster: LocalCluster) -> dict[tuple[str, str], Any]:
    """By writer and receiver: why."""
    return {
        (report.peer, receiver.name): report.failures
        for receiver in cluster.decode
        for report in receiver.pairs.stats.reports({})
        if report.failures
    }
