"""What KV from each peer costs is measured when a pair is made, learned from use, and reported."""

from pathlib import Path

import pytest

from bench.timed_link import TimedTransport
from cluster.types import WorkerId
from tests.workers.answers import greedy, prompt_of
from tests.workers.decoding import decode
from tests.workers.fetching import counted, request, warm
from tests.workers.local_cluster import LocalCluster
from worker.link_costs import LinkCosts


def costs_of(links: LinkCosts) -> dict[str, tuple[float, float]]:
    return {link.peer: (link.setup_s, link.s_per_byte) for link in links.reports()}


def test_fetches_teach_what_setting_up_costs_and_what_a_byte_does() -> None:
    links = LinkCosts()
    for num_bytes in (10_000, 10_000_000, 40_000, 3_000_000) * 5:
        links.fetched(WorkerId("near"), num_bytes, 2e-4 + num_bytes * 1e-10)
        links.fetched(WorkerId("far"), num_bytes, 0.03 + num_bytes * 2e-8)
        links.fetched(WorkerId("slow"), num_bytes, 0.2 + num_bytes * 1e-7)
    costs = costs_of(links)
    true = (("near", 2e-4, 1e-10), ("far", 0.03, 2e-8), ("slow", 0.2, 1e-7))
    for peer, setup_s, s_per_byte in true:
        assert abs(costs[peer][0] - setup_s) < 0.3 * setup_s
        assert abs(costs[peer][1] - s_per_byte) < 0.3 * s_per_byte


def test_hand_overs_teach_what_a_byte_costs_and_nothing_of_setting_up() -> None:
    links = LinkCosts()
    links.fetched(WorkerId("peer"), 1_000, 0.004)
    before = costs_of(links)["peer"][0]
    for num_bytes in (5_000_000, 20_000_000) * 10:
        links.handed_over(WorkerId("peer"), num_bytes, num_bytes * 5e-9)
    setup_s, s_per_byte = costs_of(links)["peer"]
    assert abs(s_per_byte - 5e-9) < 1e-10
    assert abs(setup_s - before) < 1e-3


def test_a_transfer_of_nothing_teaches_nothing_of_bytes() -> None:
    links = LinkCosts()
    links.handed_over(WorkerId("peer"), 0, 0.5)
    assert costs_of(links)["peer"] == (1e-3, 1e-9)


def test_of_many_peers_those_used_last_are_told() -> None:
    links = LinkCosts()
    for number in range(300):
        links.fetched(WorkerId(f"w{number:03}"), 1000, 0.01)
        links.fetched(WorkerId("w000"), 1000, 0.01)
    names = [link.peer for link in links.reports()]
    assert len(names) == 256
    assert names[0] == "w000"
    assert names[-1] == "w299"


@pytest.mark.slow
async def test_a_new_pair_is_measured_by_more_than_its_first_probe(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with LocalCluster(checkpoint, tmp_path, disaggregate="always") as cluster:
        receiver = cluster.decode[0]
        await cluster.until(lambda: counted(receiver, "transfers_verified") >= 2)
        probed, measured = (
            receiver.worker._transfers.probes.last[
                cluster.prefill[0].worker.member.worker.incarnation
            ],
            receiver.worker.load().links,
        )
        assert probed.num_tokens == 128  # an eighth of the pool
        assert [link.peer for link in measured] == ["prefill-0"]
        assert 0 < measured[0].setup_s + measured[0].s_per_byte * probed.num_bytes < 1.0
        await cluster.generate(greedy(prompt_of(1, 60), 2))
        assert receiver.worker.load().links != measured


async def test_who_fetched_knows_what_it_cost(checkpoint: Path, tmp_path: Path) -> None:
    async with LocalCluster(checkpoint, tmp_path, decode=[{}, {}], prefill=[]) as cluster:
        source, receiver = cluster.decode
        assert receiver.worker.load().links == ()
        await warm(source)
        await decode(receiver, request(source=source))
        [link] = receiver.worker.load().links
        assert link.peer == source.name
        assert 0 < link.setup_s < 1.0
        assert source.worker.load().links == ()


@pytest.mark.slow
@pytest.mark.parametrize(("lease_s", "teaches"), [(0.3, True), (30.0, False)])
async def test_a_fetch_that_takes_too_long_teaches_it_if_its_source_was_heard_of_meanwhile(
    checkpoint: Path, tmp_path: Path, lease_s: float, teaches: bool
) -> None:
    """Else the next is sent the same way, and waits as long for nothing. Who says nothing has
    stopped, which will pass."""
    prompt, settings = prompt_of(3, 100), {"fetch_s": 0.4, "lease_s": lease_s}
    async with LocalCluster(
        checkpoint,
        tmp_path,
        decode=[settings, settings],
        prefill=[],
        wrap_transport=lambda inner: TimedTransport(inner, bytes_per_s=3e3),
    ) as cluster:
        source, receiver = cluster.decode
        await warm(source, prompt)
        await decode(receiver, request(prompt, source=source))
        assert counted(receiver, "fetch_failures") == 1
        links = receiver.worker.load().links
        assert [link.peer for link in links] == [source.name] * teaches
        assert all(link.setup_s + 96 * 32 * link.s_per_byte >= 0.3 for link in links)
