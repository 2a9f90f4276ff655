"""The simulator beside a real cluster: the same requests, the coefficients that the workers report.
A short one; `make bench-fidelity` is the long one, with processes and torch."""

import random
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from bench.fidelity import COSTS, simulated
from bench.fidelity_cluster import ask, overheads
from bench.fidelity_workloads import GRAIN, Sizes, bursts
from bench.timed_engine import TimedEngine
from cluster.cost import StepCost
from cluster.types import DecodeCost, KvLayout, PrefillCost
from simulator.fitted import fitted
from simulator.setting import Setting, WorkerMake
from tests.router.checkpoint import write_checkpoint
from tests.workers.local_cluster import LocalCluster

PREFILL, DECODE = PrefillCost(**COSTS["prefill"]), DecodeCost(**COSTS["decode"])
MAKE = WorkerMake(max_batch_tokens=512, chunk_s=0.25, watermark=0.05)
KNOWN = replace(MAKE, prefill_cost=PREFILL, decode_cost=DECODE)
BASE = Setting(num_prefill=0, num_decode=1, prefill=MAKE, decode=MAKE)


def timed(layout: KvLayout, _: memoryview) -> Any:
    return TimedEngine(layout, PREFILL, DECODE)


def teach(cost: StepCost) -> None:
    """What a worker knows after its warm-up."""
    for num in (16, 64, 128, 256) * 3:
        cost.observe([(num, 0)], [], PREFILL.seconds(num, 0))
        cost.observe([], [num], DECODE.seconds(num, 1))
        cost.observe([], [num] * 4, DECODE.seconds(4 * num, 4))


@pytest.mark.slow
async def test_bursts_take_as_long_in_the_simulator_as_in_a_cluster(tmp_path: Path) -> None:
    sizes = Sizes(num_requests=32, rate=20.0, prompt_tokens=256, output_tokens=8)
    chances = random.Random(4)
    asked = bursts(sizes, chances)
    worker = {"num_blocks": 512, "block_size": GRAIN}
    cluster = LocalCluster(
        write_checkpoint(tmp_path),
        tmp_path,
        decode=[worker, worker],
        prefill=[worker, worker],
        make_engine=timed,
        hash_grain=GRAIN,
    )
    async with cluster:
        for running in cluster.workers:
            teach(running.worker.parts.cost)
        base = replace(BASE, prefill=KNOWN, decode=KNOWN)
        around = await overheads(cluster.address, base, sizes, chances, num_alone=4)
        measured = await ask(cluster.address, asked)
        statuses = list(cluster.router.pool.statuses(cluster.router.clock()))
    setting = fitted(
        replace(base, **asdict(around)), [(each.member, each.report) for each in statuses]
    )
    samples = simulated(asked, setting, sizes)
    real_ttft_s = fmean(each.ttft_s for each in measured)
    assert fmean(samples.ttft_s) == pytest.approx(real_ttft_s, rel=0.25)
    num_hits = sum(each.cached_tokens for each in measured)
    assert sum(samples.hit_tokens) == pytest.approx(num_hits, rel=0.1)
