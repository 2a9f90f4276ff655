"""Which requests are late, and where their time went."""

import random
from dataclasses import replace
from typing import Any

import grpc
import pytest

from penstock.v1 import inference_pb2, worker_pb2
from router.policy import Policy
from router.policy_settings import ServiceClass
from router.records import Fate, Record, Records
from router.rollout.generations import Generations
from router.slow import slowest
from tests.doors import ask_cluster
from tests.router.attempt_samples import draw_attempt
from tests.router.cluster_of_fakes import Cluster
from tests.router.fake_worker import TOKEN, Faults

HASTY = ServiceClass(name="hasty", ttft_s=0.1, itl_s=0.01)


def begun(name: str, arrived_at: float) -> tuple[Records, Record]:
    records = Records(1 << 20)
    return records, records.begin(name, Generations(Policy()).active, arrived_at)


def ended(
    name: str, *, ttft_s: float, itl_s: float, targets: ServiceClass = HASTY, num_choices: int = 1
) -> Record:
    (records, record), tried = begun(name, 0.0), draw_attempt("priced", random.Random(1))
    request = tried.request._replace(service_class=targets, num_choices=num_choices)
    records.attempted(record, tried._replace(request=request))
    records.first_token(record, 0, ttft_s)
    num_tokens = 11 * num_choices
    records.ended(record, Fate.FINISHED, ttft_s + 10 * itl_s, num_tokens=num_tokens)
    return record


def test_who_misses_its_own_target_the_most_comes_first() -> None:
    slow_start = ended("slow start", ttft_s=0.5, itl_s=0.001)
    slow_tokens = ended("slow tokens", ttft_s=0.01, itl_s=0.03, num_choices=3)
    patient = ended("patient", ttft_s=5.0, itl_s=0.05, targets=replace(HASTY, ttft_s=60.0, itl_s=1))
    found = slowest((), [patient, slow_tokens, slow_start], 100.0, 2)
    assert [each.record for each in found] == [slow_start, slow_tokens]
    assert [each.lateness for each in found] == pytest.approx([5.0, 3.0])
    assert found[1].itl_s == pytest.approx(0.03)
    again = slowest(found, [patient], 100.0, 3)
    assert [each.record for each in again] == [slow_start, slow_tokens, patient]


def test_who_waits_for_its_first_token_is_as_late_as_it_has_waited() -> None:
    _, record = begun("r", 10.0)
    [found] = slowest((), [record], 14.0, 9)
    assert found.lateness == pytest.approx(4.0 / found.targets.ttft_s)
    assert found.itl_s is None


async def slow(cluster: Cluster, **fields: Any) -> worker_pb2.SlowRequestsResponse:
    request = worker_pb2.SlowRequestsRequest(**{"window_seconds": 60.0, **fields})
    found: worker_pb2.SlowRequestsResponse = await ask_cluster(
        cluster.channel, "SlowRequests", request, TOKEN
    )
    return found


async def test_an_operator_sees_where_the_time_of_a_request_went(cluster: Cluster) -> None:
    async with cluster.worker("d0") as worker:
        await cluster.serving(worker)
        await cluster.generate(token_ids={"ids": [1] * 40}, request_id="done")
        reply = await slow(cluster)
        [told] = reply.requests
        assert (reply.remembered, reply.looked_at) == (True, 1)
        assert (told.request_id, told.decode, told.prefill) == ("done", "d0", "")
        assert (told.prompt_tokens, told.generation) == (40, 1)
        assert told.outcome.state == Fate.FINISHED
        assert told.HasField("phases")
        assert told.outcome.total_seconds <= told.age_seconds
        expected = told.outcome.ttft_seconds / told.target_ttft_seconds
        assert told.lateness >= expected > 0
        worker.faults = Faults(stall_after=1)
        prompt = inference_pb2.TokenIds(ids=[1] * 40)
        call = cluster.inference.Generate(
            inference_pb2.GenerateRequest(token_ids=prompt, request_id="going")
        )
        await call.read()
        by_id = {each.request_id: each for each in (await slow(cluster)).requests}
        assert by_id["going"].outcome.state == Fate.ANSWERING
        assert not by_id["going"].HasField("phases")
        assert len((await slow(cluster, max_requests=1)).requests) == 1
        call.cancel()


@pytest.mark.parametrize("window_s", [0.0, -1.0, float("nan"), 1e9])
async def test_a_window_that_is_none_is_refused_by_name(cluster: Cluster, window_s: float) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await slow(cluster, window_seconds=window_s)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "window_seconds" in (refused.value.details() or "")
