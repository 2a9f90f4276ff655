"""What the router answers by itself: bad input, refusals, models, text, health, draining."""

import asyncio
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cluster.limits import Limits
from penstock.errors import from_rpc_error
from penstock.v1 import inference_pb2 as pb
from penstock.v1 import worker_pb2
from tests.doors import ask_cluster
from tests.router.checkpoint import CONTEXT_LENGTH, END, VOCAB_SIZE
from tests.router.cluster_of_fakes import MODEL, Cluster, Failure, failure
from tests.router.fake_worker import TOKEN, Faults

SERVING, NOT_SERVING = (
    health_pb2.HealthCheckResponse.SERVING,
    health_pb2.HealthCheckResponse.NOT_SERVING,
)
INFERENCE = "penstock.v1.Inference"


async def refused(cluster: Cluster, request: pb.GenerateRequest) -> Failure:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await cluster.generate(request)
    return failure(caught.value)


async def refused_bytes(cluster: Cluster, data: bytes) -> Failure:
    call = cluster.channel.unary_stream(f"/{INFERENCE}/Generate")(data)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    return failure(caught.value)


BAD = [
    ("no prompt", {}, "INVALID_ARGUMENT", "prompt"),
    ("empty prompt", {"text": ""}, "INVALID_ARGUMENT", "text"),
    ("over the context", {"text": "x" * CONTEXT_LENGTH}, "INVALID_ARGUMENT", "text"),
    (
        "a token id that is none",
        {"token_ids": pb.TokenIds(ids=[1, VOCAB_SIZE])},
        "INVALID_ARGUMENT",
        "token_ids.ids[1]",
    ),
    (
        "absurd parameters",
        {"text": "x", "sampling": {"temperature": -1}},
        "INVALID_ARGUMENT",
        "sampling.temperature",
    ),
    (
        "10,000 stop strings",
        {"text": "x", "stop": {"stop_strings": ["a"] * 10_000}},
        "INVALID_ARGUMENT",
        "stop.stop_strings",
    ),
    (
        "a stop string without characters",
        {"text": "x", "stop": {"stop_strings": ["a", ""]}},
        "INVALID_ARGUMENT",
        "stop.stop_strings[1]",
    ),
    (
        "more tokens than there are",
        {"text": "x", "stop": {"max_tokens": 2**32 - 1}},
        "INVALID_ARGUMENT",
        "stop.max_tokens",
    ),
    ("unknown model", {"text": "x", "model": "other"}, "NOT_FOUND", None),
    ("not supported yet", {"text": "x", "adapter": "lora"}, "UNIMPLEMENTED", None),
]


@pytest.mark.parametrize(("fields", "code", "field"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
async def test_bad_input_is_named_and_the_router_serves_on(
    cluster: Cluster, fields: dict[str, object], code: str, field: str | None
) -> None:
    failed = await refused(cluster, pb.GenerateRequest(**fields))
    assert failed.code.name == code
    assert failed.message.endswith(".")
    assert field is None or failed.fields == (field,)
    assert (await cluster.inference.GetModel(pb.GetModelRequest())).model.name == MODEL


async def test_malformed_bytes_get_a_status(cluster: Cluster) -> None:
    for data in (b"\xff\xff\xff", b"\x1a\x02\xff\xfe"):  # no message; a text that is not UTF-8
        failed = await refused_bytes(cluster, data)
        assert (failed.code, failed.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ("request",))


async def test_a_message_over_the_limit_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    async with Cluster(checkpoint, tmp_path, limits=Limits(max_message_bytes=1000)) as cluster:
        failed = await refused(cluster, pb.GenerateRequest(text="x" * 2000))
        assert failed.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await cluster.inference.GetModel(pb.GetModelRequest())).model.name == MODEL


async def test_an_unknown_enum_value_is_refused(cluster: Cluster) -> None:
    """No enum is in a public request; `role` in a registration is the one there is."""
    request = worker_pb2.RegisterRequest(role=9)  # type: ignore[arg-type]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask_cluster(cluster.channel, "Register", request, TOKEN)
    refused = failure(caught.value)
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ("role",))
    assert (await cluster.inference.GetModel(pb.GetModelRequest())).model.name == MODEL


async def test_route_is_reserved(cluster: Cluster) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await cluster.inference.Route(pb.RouteRequest())
    assert failure(caught.value).code is grpc.StatusCode.UNIMPLEMENTED


async def test_text_becomes_ids_and_back(cluster: Cluster) -> None:
    ids = (await cluster.inference.Tokenize(pb.TokenizeRequest(text="héllo"))).token_ids
    assert len(ids) == 6
    back = await cluster.inference.Detokenize(pb.DetokenizeRequest(token_ids=ids))
    assert back.text == "héllo"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await cluster.inference.Detokenize(pb.DetokenizeRequest(token_ids=[VOCAB_SIZE]))
    assert failure(caught.value).fields == ("token_ids[0]",)


async def test_the_model_says_what_it_takes(cluster: Cluster) -> None:
    [model] = (await cluster.inference.ListModels(pb.ListModelsRequest())).models
    assert model == (await cluster.inference.GetModel(pb.GetModelRequest(model=MODEL))).model
    assert (model.context_length, model.vocab_size) == (CONTEXT_LENGTH, VOCAB_SIZE)
    assert model.limits.max_prompt_tokens == CONTEXT_LENGTH - 1
    assert model.limits.max_deadline.seconds == 3600
    assert model.limits.max_text_bytes == CONTEXT_LENGTH * len(END)  # its longest token
    assert model.limits.max_chat_bytes == 4 << 20
    assert model.limits.max_messages == 2048
    assert model.limits.max_detokenize_tokens == CONTEXT_LENGTH
    assert {"Generate", "sampling.top_k", "chat", "n"} <= set(model.features)
    assert not {"Route", "adapter", "stop.stop_regex"} & set(model.features)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await cluster.inference.GetModel(pb.GetModelRequest(model="other"))
    assert failure(caught.value).code is grpc.StatusCode.NOT_FOUND


async def test_without_a_worker_the_refusal_says_why(cluster: Cluster) -> None:
    failed = await refused(cluster, pb.GenerateRequest(text="x"))
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "NO_WORKER")
    assert "none has registered" in failed.message
    assert failed.retry_after_s
    async with cluster.worker("d0") as worker:
        await cluster.serving(worker)
        worker.report(is_serving=False, is_draining=True)
        await cluster.until(lambda: not cluster.router.is_serving)
        failed = await refused(cluster, pb.GenerateRequest(text="x"))
        assert "'d0': draining" in failed.message


@pytest.mark.slow
async def test_health_follows_the_workers(cluster: Cluster) -> None:
    assert await cluster.health() == NOT_SERVING
    stub = health_pb2_grpc.HealthStub(cluster.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=INFERENCE))
    assert (await watch.read()).status == NOT_SERVING
    async with asyncio.timeout(10), cluster.worker("d0") as worker:
        assert (await watch.read()).status == SERVING
        assert await cluster.health(INFERENCE) == SERVING
        await worker.die()
        assert (await watch.read()).status == NOT_SERVING
    with pytest.raises(grpc.aio.AioRpcError):
        await cluster.health("penstock.v1.Nothing")


@pytest.mark.slow
async def test_a_frozen_worker_gets_nothing_more_within_two_seconds(cluster: Cluster) -> None:
    async with cluster.worker("d0") as worker, cluster.worker("d1") as other:
        await cluster.serving(worker, other)
        clock = cluster.router.clock
        frozen_at = clock()
        worker.freeze()
        refusals = cluster.router.pool.refusals
        await cluster.until(lambda: len(refusals(clock())) == 1)
        assert 0.5 < clock() - frozen_at < 2
        assert "no report for 1." in refusals(clock())[0].reason
        num_before = len(worker.requests)
        for _ in range(10):
            assert (await cluster.generate(text="x")).is_complete
        assert len(worker.requests) == num_before


@pytest.mark.slow
async def test_when_all_are_silent_the_one_heard_last_serves(cluster: Cluster) -> None:
    """Their silence may be the machine's; whoever is asked can only gain."""
    async with cluster.worker("d0") as d0, cluster.worker("d1") as d1:
        await cluster.serving(d0, d1)
        d0.freeze()
        await cluster.until(lambda: len(cluster.router.pool.refusals(cluster.router.clock())) == 1)
        d1.freeze()
        await cluster.until(lambda: not cluster.router.is_serving)
        assert (await cluster.generate(text="x")).is_complete
        assert (len(d0.requests), len(d1.requests)) == (0, 1)


async def test_reflection_lists_the_services(cluster: Cluster) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(cluster.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    [response] = [r async for r in stub.ServerReflectionInfo(iter([request]))]
    names = {service.name for service in response.list_services_response.service}
    assert {INFERENCE, "grpc.health.v1.Health"} <= names


async def test_more_than_can_be_taken_on_is_shed_with_a_hint(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with (
        Cluster(checkpoint, tmp_path, max_in_flight=2) as cluster,
        cluster.worker("d0", faults=Faults(stall_after=1)) as worker,
    ):
        await cluster.serving(worker)
        calls = [cluster.inference.Generate(pb.GenerateRequest(text="x y")) for _ in range(2)]
        for call in calls:
            await call.read()
        failed = await refused(cluster, pb.GenerateRequest(text="x"))
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "OVERLOADED")
        assert failed.retry_after_s == 1.0
        for call in calls:
            call.cancel()


@pytest.mark.slow
async def test_draining_finishes_what_runs_and_refuses_the_rest(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with (
        Cluster(checkpoint, tmp_path, drain_s=10.0) as cluster,
        cluster.worker("d0", faults=Faults(stall_after=1)) as worker,
    ):
        await cluster.serving(worker)
        running = cluster.inference.Generate(pb.GenerateRequest(text="hello"))
        await running.read()
        cluster.drain.set()
        await cluster.until(lambda: cluster.router.admission.is_draining)
        assert await cluster.health() == NOT_SERVING
        failed = await refused(cluster, pb.GenerateRequest(text="x"))
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        worker.resume()
        last = None
        while (message := await running.read()) is not grpc.aio.EOF:
            last = message
        assert last is not None
        assert last.HasField("finished")


async def test_a_drain_that_takes_too_long_ends_what_runs(checkpoint: Path, tmp_path: Path) -> None:
    async with (
        Cluster(checkpoint, tmp_path, drain_s=0.05) as cluster,
        cluster.worker("d0", faults=Faults(stall_after=1)) as worker,
    ):
        await cluster.serving(worker)
        running = cluster.inference.Generate(pb.GenerateRequest(text="hello"))
        await running.read()
        cluster.drain.set()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.read()
        error = from_rpc_error(caught.value)
        assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "STREAM_INTERRUPTED")
        assert error.metadata["tokens_emitted"] == "1"
        async with asyncio.timeout(5):
            await worker.cancelled.wait()


async def test_a_drain_that_takes_too_long_sends_who_has_no_token_elsewhere(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with (
        Cluster(checkpoint, tmp_path, drain_s=0.05) as cluster,
        cluster.worker("d0", faults=Faults(stall_after=0)) as worker,
    ):
        await cluster.serving(worker)
        waiting = cluster.inference.Generate(pb.GenerateRequest(text="hello"))
        await cluster.until(lambda: worker.num_open > 0)
        cluster.drain.set()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await waiting.read()
        error = from_rpc_error(caught.value)
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert error.retry_after == 1.0
