"""Every metric that docs/metrics.md names is there, says what it is, and moves with what it tells
of: real routers, workers and requests, in one loop."""

import asyncio
import re
from collections import Counter, defaultdict
from dataclasses import replace
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Final
from unittest.mock import patch

import grpc.aio
import pytest

from cluster.errors import InvalidRequest, StoreUnavailable
from cluster.tracing import Tracing
from cluster.types import Incarnation
from router.callers.key_file import ANYBODY, KeyTable
from router.tries import Tries
from router.waiting import Waiting
from tests.docs.pages import PAGES
from tests.kv_transfer.faulty_transport import Fault, FaultPlan, FaultyTransport
from tests.router.policy_texts import policy_text
from tests.scraped import scraped, targets
from tests.workers.answers import greedy, prompt_of
from tests.workers.kept_spans import KeptSpans
from tests.workers.local_cluster import LocalCluster, stuck

NAMED: Final = set(
    re.findall(r"^\| `((?:penstock_|vllm:)[a-z0-9_:]+)`", PAGES["docs/metrics.md"], re.M)
)
# What does not change while a process lives.
CONSTANT: Final = {
    *("penstock_build_info", "penstock_index_budget_bytes"),
    *("penstock_kv_blocks", "penstock_kv_pool_bytes"),
}


class Seen:
    """What was scraped so far of a cluster."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self._said: defaultdict[str, set[frozenset[object]]] = defaultdict(set)
        self.most: Counter[str] = Counter()  # of a metric's sum over all labels and processes
        self.helps: dict[str, str] = {}

    async def look(self) -> None:
        router = self._cluster.router
        workers = await targets(router.metrics_address)
        told = [await scraped(each) for each in (router.metrics_address, *workers.values())]
        for name in {name for each in told for name in each.kinds}:
            self._said[name].add(frozenset((i, each.of(name)) for i, each in enumerate(told)))
            self.most[name] = max(self.most[name], sum(each.total(name) for each in told))
        for each in told:
            self.helps.update(each.helps)

    @property
    def moved(self) -> set[str]:
        return {name for name, said in self._said.items() if len(said) > 1}


@pytest.mark.slow
async def test_every_metric_is_there_and_moves(checkpoint: Path, tmp_path: Path) -> None:
    async with LocalCluster(
        checkpoint,
        tmp_path,
        decode=[{"max_sequences": 2}],
        prefill=[{"max_batch_tokens": 32}],
        wrap_transport=FaultyTransport,
        disaggregate="always",
        tracing=Tracing(KeptSpans()),
    ) as cluster:
        seen = Seen(cluster)
        await seen.look()
        await answered(cluster, seen)
        await left_while_it_runs(cluster, seen)
        await refused(cluster, seen)
        await failed(cluster, seen)
        await policies_come(cluster, seen)  # which place as they want
        await drained(cluster, seen)
        await nobody_can_take_it(cluster, seen)
        await rare_things_happen(cluster, seen)
        assert seen.helps.keys() == NAMED
        assert all(len(said) > 10 for said in seen.helps.values())
        assert sorted(seen.helps.keys() - seen.moved) == sorted(CONSTANT)
        assert all(seen.most[name] > 0 for name in CONSTANT)


async def answered(cluster: LocalCluster, seen: Seen) -> None:
    for number in (1, 1, 2):
        await cluster.generate(greedy(prompt_of(number, 80), 4))
    async with asyncio.timeout(10):
        while "penstock_event_loop_lag_seconds" not in seen.moved:  # it is looked at now and then
            await seen.look()


async def left_while_it_runs(cluster: LocalCluster, seen: Seen) -> None:
    """More than fit, all of whom leave while a step stands still."""
    [decode], [prefill] = cluster.decode, cluster.prefill
    decode.gate.close()
    running = [
        asyncio.ensure_future(cluster.generate(greedy(prompt_of(10 + number, 40), 9)))
        for number in range(4)
    ]
    await stuck(decode)
    await cluster.until(lambda: decode.worker.load().num_waiting > 0)
    prefill.gate.close()
    running.append(asyncio.ensure_future(cluster.generate(greedy(prompt_of(20, 40), 9))))
    await stuck(prefill)
    await cluster.until(lambda: prefill.worker.load().num_queued_tokens > 0)
    await seen.look()
    for each in running:
        each.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await cluster.until(lambda: cluster.router.admission.num_in_flight == 0)
    await cluster.until(lambda: decode.worker.open_calls.num == 0)
    decode.gate.open()
    prefill.gate.open()
    await cluster.until(lambda: decode.worker.scheduler.steps.dead_s > 0)
    await cluster.idle()
    await seen.look()


async def refused(cluster: LocalCluster, seen: Seen) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await cluster.generate(greedy(prompt_of(1, 10), 9, model="of nobody"))
    await seen.look()


async def policies_come(cluster: LocalCluster, seen: Seen) -> None:
    policy = cluster.router.policy
    with pytest.raises(InvalidRequest):
        await policy.apply("spec: nothing", "test")
    await seen.look()
    classes = "  classes: [{name: quick, ttft: 1ms, itl: 1ms}]\n"
    await policy.apply(policy_text(2.0), "test")
    await policy.apply(policy_text(3.0, more=classes), "test", canary_share=0.9)
    await seen.look()
    for number in range(4):
        await cluster.generate(greedy(prompt_of(30 + number, 40), 4))
    await seen.look()


async def drained(cluster: LocalCluster, seen: Seen) -> None:
    [decode] = cluster.decode
    decode.worker.drain.begin(30.0)
    pool, clock = cluster.router.pool, cluster.router.clock
    await cluster.until(lambda: any(each.report.is_draining for each in pool.statuses(clock())))
    await seen.look()
    decode.worker.drain.undo()
    await cluster.until(lambda: not any(e.report.is_draining for e in pool.statuses(clock())))


async def failed(cluster: LocalCluster, seen: Seen) -> None:
    """KV comes that is not what was sent."""
    cluster.disturb("prefill-0", "decode-0", FaultPlan(shares={Fault.CORRUPT: 1}))
    await cluster.generate(greedy(prompt_of(50, 40), 4))
    cluster.disturb("prefill-0", "decode-0", FaultPlan())
    assert cluster.decode[0].counters["hand_over_recomputes"] == 1
    await seen.look()


async def rare_things_happen(cluster: LocalCluster, seen: Seen) -> None:
    """What would take long to bring about: where it is kept, it is said to have happened."""
    router, [decode] = cluster.router, cluster.decode
    books, records = router.placer.books, router.placer.records
    books.counters.num_moved += 1
    books.observed.attainment.of("default").num_rejected += 1
    records.regret.dearer.add(0.5)
    records.regret.sum_s += 0.5
    router.index.num_forgotten += 1
    next(iter(router.fleet._followed.values())).watcher.num_gaps += 1
    assert router.placer.generations.canary is not None
    router.placer.generations.canary.on_trial.num_errors += 1
    router.callers.num_refused += 1
    router.callers.error = "The file of keys is gone."
    router.quotas.num_unchecked += 1
    router.counts.by_outcome["finished", "for no reason that is declared"] += 1

    worker, transfers = decode.worker, decode.worker._transfers
    worker.attention.absent_s += 1.0
    assert cluster.tracing is not None
    cluster.tracing.sink.counts.num_exported += 1
    outliving = worker._role.frames.outliving
    outliving._num_attached += 1
    outliving._num_given_up += 1
    worker.scheduler.batcher.counters.num_preemptions += 1
    worker.scheduler.batcher.counters.num_copies += 1
    transfers.fetches.num_fetched += 1
    transfers.fetches.num_tokens += 16
    transfers.fetches.num_failed += 1
    transfers.source.num_tokens += 16
    transfers.keeper.num_up += 1
    transfers.keeper._refused[Incarnation("stranger")] = "it does not fit"
    pair = next(iter(decode.pairs.stats._pairs.values())).counters
    pair.num_fenced += 1
    pair.num_refused_writes += 1
    report = worker.load()
    counters = {**report.counters, "detached_answers": 1.0}
    pairs = tuple(replace(each, num_quarantined_blocks=2) for each in report.pairs)
    keys = patch.object(router.callers, "table", KeyTable(keys=(ANYBODY,)))
    shown = SimpleNamespace(served=SimpleNamespace(left_s=lambda: 86_400.0), error="It is gone.")
    with (
        keys,
        patch.object(router, "certificate", shown),
        patch.object(
            worker,
            "load",
            lambda: replace(
                report, num_quarantined_blocks=2, tail_reuse=0.5, pairs=pairs, counters=counters
            ),
        ),
    ):
        await seen.look()
    transfers.keeper.num_up -= 1


async def nobody_can_take_it(cluster: LocalCluster, seen: Seen) -> None:
    router = cluster.router
    parked = Waiting(
        due_at=0.0,
        since=router.clock() - 5.0,
        until=inf,
        num_bytes=100,
        num_choices=1,
        tries=Tries(router.pool),
    )
    parked.called.set()  # so that nobody calls it
    room = router.waiting
    room._waiting.append(parked)
    room.num_bytes += parked.num_bytes
    away = StoreUnavailable("It is away.")
    with patch.object(router.fleet._membership, "members", side_effect=away):
        router.fleet.refresh()
        await cluster.until(lambda: router.fleet.is_store_away)
        await seen.look()
    room._waiting.remove(parked)
    room.num_bytes -= parked.num_bytes
