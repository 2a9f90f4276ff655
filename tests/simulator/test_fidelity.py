"""The simulator beside a real cluster: the same requests, the coefficients that the workers report.
A short one; `make bench-fidelity` is the long one, with processes and torch."""

import random
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from bench.fidelity import as_table, compare, is_faithful, simulated, summary, timed_case
from bench.fidelity_cluster import ask
from bench.fidelity_workloads import GRAIN, Sizes, bursts
from bench.timed_engine import TimedEngine
from cluster.types import DecodeCost, KvLayout, PrefillCost
from simulator.fitted import fitted
from simulator.setting import Setting, WorkerMake
from tests.router.checkpoint import write_checkpoint
from tests.workers.local_cluster import LocalCluster
from worker.cost import StepCost

# Slow steps: what a busy machine adds to the messages between them must not matter.
PREFILL, DECODE = PrefillCost(c0=0.04, c1=8e-4), DecodeCost(d0=0.04, d2=1e-3)
MAKE = WorkerMake(max_batch_tokens=512, chunk_s=0.25)
BASE = Setting(num_prefill=0, num_decode=1, decode=MAKE)


def timed(layout: KvLayout, _: memoryview) -> Any:
    return TimedEngine(layout, PREFILL, DECODE)


def teach(cost: StepCost) -> None:
    """What a worker knows after its warm-up."""
    for num in (16, 64, 128, 256) * 3:
        cost.observe([(num, 0)], [], PREFILL.seconds(num, 0))
        cost.observe([], [num], DECODE.seconds(num, 1))
        cost.observe([], [num] * 4, DECODE.seconds(4 * num, 4))


@pytest.mark.prove
@pytest.mark.alone
@pytest.mark.slow
async def test_bursts_take_as_long_in_the_simulator_as_in_a_cluster(tmp_path: Path) -> None:
    """From a worker's receipt of a request to its first token: waiting for others, computing,
    beside answers that are decoded. The way between client and worker is left out on both sides,
    for here all processes share one loop."""
    sizes = Sizes(num_requests=24, rate=10.0, num_siblings=4, prompt_tokens=256, output_tokens=4)
    asked = bursts(sizes, random.Random(4))
    worker = {"num_blocks": 512, "block_size": GRAIN}
    cluster = LocalCluster(
        write_checkpoint(tmp_path),
        tmp_path,
        decode=[worker, worker],
        prefill=[],
        make_engine=timed,
        hash_grain=GRAIN,
    )
    async with cluster:
        for running in cluster.workers:
            teach(running.worker.parts.cost)
        measured = await ask(cluster.address, asked)
        statuses = list(cluster.router.pool.statuses(cluster.router.clock()))
    setting = fitted(BASE, [(each.member, each.report) for each in statuses])
    samples = simulated(asked, replace(setting, message_s=0.0))
    real_s = fmean(each.first_token_s - each.router_s for each in measured)
    assert fmean(samples.ttft_s) == pytest.approx(real_s, rel=0.2)
    num_hits = sum(each.cached_tokens for each in measured)
    assert sum(samples.hit_tokens) == pytest.approx(num_hits, rel=0.1)


@pytest.mark.prove
@pytest.mark.alone
@pytest.mark.timeout(600)
async def test_five_workers_of_their_own_processes_take_as_long_as_in_the_simulator() -> None:
    """Three workloads, the median of three runs of each; mean TTFT and hit tokens."""
    case = timed_case()
    pairs = await compare(case, list(case.sizes), num=3, seed=7)
    report = {"timed": {name: summary(each) for name, each in pairs.items()}}
    assert is_faithful(report), as_table(report)
