"""`penstock top` beside real processes: figures move, who dies is seen, and the token tells why."""

import asyncio
import time
from pathlib import Path

import pytest

from deploy.launcher import LocalCluster
from penstock.cli.top.inside import Inside
from penstock.cli.top.scrape import Url
from penstock.cli.top.watch import Pace, View, Watch
from penstock.cli.top.workers import WorkerHealth, link_figures, pair_figures
from tests.processes.echo_cluster import ask, running, until


def watching(cluster: LocalCluster) -> Watch:
    return Watch([Url.parse(f"http://{cluster.http}/metrics")], Pace(0.3, 5.0))


def healths(view: View) -> dict[str, WorkerHealth]:
    return {each.name: each.health for each in view.workers}


@pytest.mark.slow
async def test_figures_of_a_real_cluster_move_and_who_dies_is_seen(tmp_path: Path) -> None:
    async with running(tmp_path, num_decode=2) as (cluster, client):
        watch = watching(cluster)
        task = asyncio.create_task(watch.run())
        try:
            everybody = dict.fromkeys(("prefill-0", "decode-0", "decode-1"), WorkerHealth.SERVING)

            async def are_all_there() -> bool:
                return healths(watch.view()) == everybody

            await until(are_all_there, 20)
            await asyncio.gather(*(ask(client, list(range(2, 90 + n)), 8) for n in range(6)))

            async def has_moved() -> bool:
                view, [prefill] = (
                    watch.view(),
                    [each for each in watch.view().workers if each.role == "prefill"],
                )
                return bool(view.router.traffic.tokens_per_s and prefill.gb_per_s)

            await until(has_moved, 20)
            view = watch.view()
            traffic = view.router.traffic
            assert (traffic.ttft_p50_s or 0) > 0
            assert (traffic.itl_p99_s or 0) > 0
            assert view.router.errors == {}
            assert view.router.policy.generation == 1
            decoding = [each for each in view.workers if each.role == "decode" and each.itl_s]
            assert decoding
            pairs = pair_figures(watch.workers[decoding[0].name].track, 5.0)
            assert pairs[0].peer == "prefill-0"
            assert pairs[0].num_transfers > 0
            links = link_figures(watch.workers[decoding[0].name].track)
            assert "prefill-0" in {each.peer for each in links}

            cluster.children["decode-1"].kill()

            async def is_seen() -> bool:
                return healths(watch.view()).get("decode-1") is not WorkerHealth.SERVING

            await until(is_seen, 20)
            await until(are_all_there, 40)  # it is started again, and counts from nothing
            again = watch.view()
            assert all((each.tokens_per_s or 0) >= 0 for each in again.workers)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.mark.slow
async def test_who_has_the_token_is_told_where_the_time_of_a_request_went(tmp_path: Path) -> None:
    async with running(tmp_path) as (cluster, client):
        began = time.monotonic()
        await ask(client, list(range(2, 90)), 4)
        took_s = time.monotonic() - began
        inside = Inside(cluster.address, cluster.secrets_file)
        [late] = await asyncio.to_thread(inside.late)
        assert (late.prefill, late.decode, late.tokens) == ("prefill-0", "decode-0", 4)
        assert late.phases.keys() == {"router", "queue", "prefill", "transfer", "decode"}
        assert 0 < (late.ttft_s or 0) <= (late.total_s or 0) <= took_s
        assert late.phases["prefill"] + late.phases["decode"] <= took_s
        why = await asyncio.to_thread(inside.explained, late.request_id)
        assert "decode-0" in why.tries[0].sentence
        changes = await asyncio.to_thread(inside.changes)
        assert changes.recent[0][1] == 1
