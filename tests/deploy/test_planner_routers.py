"""What several routers say is one picture: of traffic all, of a worker what was heard last. Each is
asked over one connection for as long as it is there."""

import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import psutil
import pytest

from cluster.addresses import Endpoint
from cluster.codec import load_report_to_pb
from cluster.errors import InvalidRequest, PenstockError
from cluster.secrets import load_secrets
from cluster.types import LoadReport, Role
from cluster.worker_codec import member_to_pb
from deploy.planner.observation import observed
from deploy.planner.routers import Question, RouterConnections, merged
from penstock.v1 import worker_pb2 as pb
from simulator.elastic import Staff
from simulator.setting import Setting
from tests.redis_server import free_port
from tests.router.checkpoint import write_checkpoint
from tests.router.cluster_of_fakes import Cluster
from tests.router.pool_samples import member


def heard(
    name: str, *, age_s: float, life: str = "1", in_flight: int = 0, free: int = 10
) -> object:
    report = LoadReport(num_blocks=100, num_free_blocks=free)
    return pb.WorkerStatus(
        member=member_to_pb(member(name, Role.DECODE, life=life)),
        load=load_report_to_pb(report),
        serving=True,
        report_age_seconds=age_s,
        requests_in_flight=in_flight,
    )


def seen(age_s: float, **fields: float) -> pb.SeenRequest:
    return pb.SeenRequest(
        age_seconds=age_s,
        prompt_tokens=100,
        output_tokens=20.0,
        target_ttft_seconds=1.0,
        target_itl_seconds=0.1,
        **fields,
    )


def test_traffic_of_all_routers_counts_from_when_the_last_began_to_look() -> None:
    old = pb.ObserveResponse(watched_seconds=500.0, waiting=1, requests=[seen(90.0), seen(5.0)])
    new = pb.ObserveResponse(watched_seconds=60.0, waiting=2, requests=[seen(7.0)])
    found = merged([old, new], 1000.0)
    assert found.began_s == 940.0
    assert found.num_waiting == 3
    assert [each.arrived_at for each in found.arrivals] == [910.0, 995.0, 993.0]
    observation = observed(
        found.arrivals,
        [],
        now_s=1000.0,
        window_s=300.0,
        prefill=Staff(),
        decode=Staff(num_serving=1),
        base=Setting(num_prefill=0, num_decode=1),
        began_s=found.began_s,
    )
    assert [each.arrived_at for each in observation.requests] == [993.0, 995.0]
    assert not observation.is_full


def test_a_worker_is_as_it_was_heard_last_and_has_what_all_have_sent() -> None:
    one = pb.ObserveResponse(workers=[heard("d0", age_s=3.0, in_flight=2, free=90)])
    other = pb.ObserveResponse(workers=[heard("d0", age_s=0.1, in_flight=1, free=40)])
    [status] = merged([one, other], 0.0).workers.values()
    assert status.report.num_free_blocks == 40
    assert status.num_in_flight == 3


def test_a_newer_life_counts_though_an_older_one_was_heard_later() -> None:
    one = pb.ObserveResponse(workers=[heard("d0", age_s=0.1, life="1")])
    other = pb.ObserveResponse(workers=[heard("d0", age_s=0.5, life="2")])
    for replies in ([one, other], [other, one]):
        [status] = merged(replies, 0.0).workers.values()
        assert status.member.worker.incarnation == "2"


def test_how_far_a_request_has_gone_is_told_apart_from_nothing_yet() -> None:
    reply = pb.ObserveResponse(
        requests=[
            seen(5.0),
            seen(4.0, ttft_seconds=0.5),
            seen(3.0, ttft_seconds=0.5, itl_seconds=0.0),
        ]
    )
    waiting, answering, ended = merged([reply], 10.0).arrivals
    assert (waiting.ttft_s, waiting.itl_s) == (None, None)
    assert (answering.ttft_s, answering.itl_s) == (0.5, None)
    assert ended.is_good(10.0) is True


QUESTION = Question(window_s=60.0, next_s=5.0)


@pytest.fixture
async def routers(tmp_path: Path) -> AsyncIterator[list[Cluster]]:
    checkpoint = write_checkpoint(tmp_path)
    async with AsyncExitStack() as stack:
        addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        made = [Cluster(checkpoint, tmp_path, address=address) for address in addresses]
        yield [await stack.enter_async_context(router) for router in made]


def connections(router: Cluster) -> set[int]:
    """The ports from which clients of this process are connected to it."""
    port = Endpoint.parse(router.address).port
    found = psutil.Process().net_connections("tcp")
    return {each.laddr.port for each in found if each.raddr and each.raddr.port == port}


async def test_a_router_is_asked_over_one_connection_until_it_leaves(
    routers: list[Cluster],
) -> None:
    one, other = routers
    both = [one.address, other.address]
    async with RouterConnections(load_secrets(one.router.config.secrets_file)) as asked:
        await asked.observe(both, QUESTION, 0.0)
        before = [connections(router) for router in routers]
        assert list(map(len, before)) == [1, 1]
        await asked.observe(both, QUESTION, 1.0)
        with pytest.raises(InvalidRequest, match="no worker 'x' here"):
            await asked.undrain(both, "x")
        await asked.observe(both, QUESTION, 2.0)
        assert [connections(router) for router in routers] == before
        await asked.observe([other.address], QUESTION, 3.0)
        await one.until(lambda: not connections(one))
        assert connections(other) == before[1]
    gc.collect()  # an error may hold the call that it tells of, and that its connection
    await other.until(lambda: not connections(other))


async def test_a_router_that_was_away_is_asked_when_it_is_back(routers: list[Cluster]) -> None:
    one, _ = routers
    async with RouterConnections(load_secrets(one.router.config.secrets_file)) as asked:
        await asked.observe([one.address], QUESTION, 0.0)
        await one.router.server.stop()
        with pytest.raises(PenstockError):
            await asked.observe([one.address], QUESTION, 1.0)
        assert connections(one) == set()
        await one.router.server.start()
        found = await asked.observe([one.address], QUESTION, 2.0)
        assert found.began_s <= 2.0
