"""Processes of a cluster are scraped as Prometheus would: by what the router says of them."""

import json
from pathlib import Path

import pytest

from tests.processes.echo_cluster import ask, running, status, until
from tests.scraped import fetched, scraped, targets


@pytest.mark.slow
async def test_all_processes_are_scraped_by_the_routers_word(tmp_path: Path) -> None:
    async with running(tmp_path) as (cluster, client):
        await ask(client, list(range(2, 60)), 4)
        found = await scraped(cluster.http)
        assert found("penstock_requests_total", outcome="finished", reason="") == 1
        assert found("penstock_generated_tokens_total") == 4
        workers = await targets(cluster.http)
        assert workers.keys() == {"prefill-0", "decode-0"}
        said = {name: each.member.metrics for name, each in (await status(cluster)).items()}
        assert workers == said
        sampled = [await scraped(address) for address in workers.values()]
        assert sum(each("penstock_sampled_tokens_total") for each in sampled) == 4
        assert sum(each("penstock_hand_overs_total") for each in sampled) == 1
        parts = {part for each in (found, *sampled) for part in each.labels("penstock_build_info")}
        assert {"router", "prefill", "decode"} <= parts

        # Who is started again is found again, wherever it listens now.
        cluster.children["decode-0"].kill()

        async def is_found_again() -> bool:
            there = (await targets(cluster.http)).get("decode-0")
            return there not in (None, workers["decode-0"])

        await until(is_found_again, 30)
        again = (await targets(cluster.http))["decode-0"]
        assert (await scraped(again))("penstock_sampled_tokens_total") == 0
        _, page = await fetched(cluster.http, "/openapi.json")
        assert "/metrics" in json.loads(page)["paths"]
