"""One line a request, whatever becomes of it, and not a word of what it says."""

import asyncio
import logging
from typing import Any

import grpc.aio
import pytest

from cluster.errors import WorkerLost
from cluster.log import REQUEST
from cluster.types import Role
from penstock.v1 import inference_pb2 as pb
from tests.router.cluster_of_fakes import MODEL, Cluster
from tests.router.fake_worker import Faults

SECRET = "zebrafish"


@pytest.fixture(autouse=True)
def _everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(each)["fields"] for each in caplog.records if each.levelno == REQUEST]


async def test_an_answer_leaves_one_line_with_its_figures(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster.worker("d0", text="é") as worker:
        await cluster.serving(worker)
        await cluster.generate(text=SECRET, request_id="r-1")
    [line] = lines(caplog)
    assert (line["request_id"], line["outcome"]) == ("r-1", "finished")
    assert (line["prompt_tokens"], line["completion_tokens"]) == (9, 9)
    assert line["finish"] in ("stop", "length")
    assert (line["decode"], line["tries"], line["cached_tokens"]) == ("d0", 1, 0)
    assert line["model"] == MODEL
    assert {"prefill", "reason", "source"}.isdisjoint(line)
    assert 0 < line["ttft_ms"] <= line["total_ms"] < 10_000
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"text": SECRET}, {"request_id": "r-1", "outcome": "refused", "reason": "NO_WORKER"}),
        (
            {"text": SECRET, "sampling": {"temperature": -1}},
            {"request_id": "r-1", "outcome": "refused", "reason": "INVALID_REQUEST"},
        ),
        (
            {"text": SECRET, "model": SECRET},
            {"request_id": "r-1", "outcome": "refused", "reason": "UNKNOWN_MODEL"},
        ),
        (
            {"text": "x", "request_id": f"an id that is none: {SECRET}"},
            {"outcome": "refused", "reason": "INVALID_REQUEST"},
        ),
    ],
)
async def test_a_refusal_leaves_one_line_with_its_reason(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, asked: Any, line: dict[str, Any]
) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await cluster.generate(**{"request_id": "r-1", **asked})
    [found] = lines(caplog)
    assert found.items() >= line.items()
    assert ("request_id" in found) == ("request_id" in line)
    assert SECRET not in caplog.text


async def test_a_request_that_moves_says_how_often_and_where_it_ended(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    lost = Faults(refuse=WorkerLost("It is gone."))
    async with cluster.worker("d0", faults=lost) as d0, cluster.worker("d1", faults=lost) as d1:
        await cluster.serving(d0, d1)
        with pytest.raises(grpc.aio.AioRpcError):
            await cluster.generate(text=SECRET, timeout_s=5.0)
    [line] = lines(caplog)
    assert line["outcome"] in ("failed", "refused")
    assert line["reason"]
    assert line["tries"] == 2
    assert SECRET not in caplog.text


async def test_who_leaves_and_who_is_late_are_told_apart(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    stuck = Faults(stall_after=2)
    async with cluster.worker("d0", Role.DECODE, faults=stuck) as worker:
        await cluster.serving(worker)
        with pytest.raises(grpc.aio.AioRpcError):
            await cluster.generate(text=SECRET, request_id="late", timeout_s=0.3)
        call = cluster.inference.Generate(pb.GenerateRequest(text="left", request_id="left"))
        await call.read()
        call.cancel()
        await cluster.until(lambda: len(lines(caplog)) == 2)
    outcomes = {line["request_id"]: line for line in lines(caplog)}
    assert outcomes["late"]["outcome"] == "failed"
    assert outcomes["late"]["reason"] == "DEADLINE_EXCEEDED"
    assert outcomes["late"]["completion_tokens"] == 2
    assert outcomes["left"]["outcome"] == "cancelled"
    assert "reason" not in outcomes["left"]
    assert SECRET not in caplog.text


async def test_above_its_level_it_is_not_even_made(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with cluster.worker("d0") as worker:
        await cluster.serving(worker)
        await cluster.generate(text="x")
    await asyncio.sleep(0)
    assert lines(caplog) == []
