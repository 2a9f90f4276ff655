"""A scripted Inference server, and one way to ask either client."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Packed
from google.rpc import error_details_pb2, status_pb2

from cluster.proof import Doorkeeper
from penstock import Answer, AsyncClient, Client
from penstock.cli.app import run
from penstock.v1 import inference_pb2 as pb
from penstock.v1 import inference_pb2_grpc, worker_pb2_grpc
from penstock.v1 import worker_pb2 as worker_pb
from tests.doors import ThreadedDoor
from tests.penstock.command_line import Ended, Penstock

TOKEN = "t" * 20

Step = Callable[[grpc.ServicerContext], Iterator[pb.GenerateResponse]]


def accepted(**fields: Any) -> pb.GenerateResponse:
    """The first message of a stream, with the first token."""
    values = {"request_id": "r1", "model": "fake", "decode_worker": "decode-0", "seed": 7}
    message = pb.GenerateResponse(
        accepted=pb.Accepted(**{**values, "prompt_tokens": 3, "cached_tokens": 2, **fields})
    )
    message.deltas.add(choice=0, index=0, token_ids=[10], text="Hel")
    return message


def finished(num_tokens: int = 2) -> pb.GenerateResponse:
    message = pb.GenerateResponse()
    message.deltas.add(choice=0, index=1, token_ids=[11], text="lo.")
    message.finished.choices.add(choice=0, reason=pb.FINISH_REASON_STOP, stop_token_id=2)
    message.finished.usage.CopyFrom(
        pb.Usage(prompt_tokens=3, cached_tokens=2, completion_tokens=num_tokens)
    )
    message.finished.timeline.first_token_seconds = 0.01
    message.finished.timeline.total_seconds = 0.02
    return message


def answers(_: grpc.ServicerContext) -> Iterator[pb.GenerateResponse]:
    yield accepted()
    yield finished()


def refuses(
    code: grpc.StatusCode,
    reason: str = "",
    message: str = "No.",
    *,
    metadata: dict[str, str] | None = None,
    details: tuple[Any, ...] = (),
    pushback: str | None = None,
    after_first: bool = False,
) -> Step:
    """Ends the call with a status and its google.rpc details."""

    def step(context: grpc.ServicerContext) -> Iterator[pb.GenerateResponse]:
        if after_first:
            yield accepted()
        trailers: list[tuple[str, str | bytes]] = []
        status = status_pb2.Status(code=code.value[0], message=message)
        info = error_details_pb2.ErrorInfo(reason=reason, metadata=metadata or {})
        for detail in (info, *details):
            packed = Packed()
            packed.Pack(detail)
            status.details.append(packed)
        if reason:
            trailers.append(("grpc-status-details-bin", status.SerializeToString()))
        if pushback is not None:
            trailers.append(("grpc-retry-pushback-ms", pushback))
        context.set_trailing_metadata(trailers)
        context.abort(code, message)

    return step


@dataclass(slots=True, eq=False)
class FakeInference(
    ThreadedDoor, inference_pb2_grpc.InferenceServicer, worker_pb2_grpc.ClusterServicer
):
    """Plays `steps` one call after the other; the last one is repeated."""

    steps: list[Step] = field(default_factory=lambda: [answers])
    requests: list[pb.GenerateRequest] = field(default_factory=list)
    timeouts: list[float] = field(default_factory=list)
    doorkeeper: Doorkeeper = field(default_factory=lambda: Doorkeeper(TOKEN))
    heard: list[str] = field(default_factory=list)  # metadata of internal calls
    status: worker_pb.StatusResponse = field(default_factory=worker_pb.StatusResponse)
    statuses: list[worker_pb.StatusResponse] = field(default_factory=list)  # before that
    told: list[Any] = field(default_factory=list)  # of workers
    cancelled: threading.Event = field(default_factory=threading.Event)
    address: str = ""

    def Generate(
        self, request: pb.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GenerateResponse]:
        self.requests.append(request)
        self.timeouts.append(context.time_remaining())
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        yield from step(context)

    def holds(self, context: grpc.ServicerContext) -> Iterator[pb.GenerateResponse]:
        """A step that starts an answer and never ends it; notes the cancellation."""
        assert context.add_callback(self.cancelled.set)
        yield accepted()
        self.cancelled.wait(10)

    def Tokenize(
        self, request: pb.TokenizeRequest, context: grpc.ServicerContext
    ) -> pb.TokenizeResponse:
        if self.steps != [answers]:
            list(self.Generate(pb.GenerateRequest(), context))
        return pb.TokenizeResponse(token_ids=[len(word) for word in request.text.split()])

    def Detokenize(
        self, request: pb.DetokenizeRequest, context: grpc.ServicerContext
    ) -> pb.DetokenizeResponse:
        return pb.DetokenizeResponse(text=" ".join("x" * token for token in request.token_ids))

    def ListModels(
        self, request: pb.ListModelsRequest, context: grpc.ServicerContext
    ) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[pb.Model(name="fake", context_length=2048)])

    def GetModel(
        self, request: pb.GetModelRequest, context: grpc.ServicerContext
    ) -> pb.GetModelResponse:
        return pb.GetModelResponse(model=pb.Model(name="fake", context_length=2048, vocab_size=512))

    def Status(
        self, request: worker_pb.StatusRequest, context: grpc.ServicerContext
    ) -> worker_pb.StatusResponse:
        self.heard += [f"{key}: {value}" for key, value in context.invocation_metadata()]
        self.check(context, "/penstock.v1.Cluster/Status")
        if self.statuses:
            self.status = self.statuses.pop(0)
        return self.status

    def Drain(
        self, request: worker_pb.DrainRequest, context: grpc.ServicerContext
    ) -> worker_pb.DrainResponse:
        self.check(context, "/penstock.v1.Cluster/Drain")
        self.told.append(request)
        return worker_pb.DrainResponse(incarnation="1", open_calls=2, limit_seconds=30)

    def Undrain(
        self, request: worker_pb.UndrainRequest, context: grpc.ServicerContext
    ) -> worker_pb.UndrainResponse:
        self.check(context, "/penstock.v1.Cluster/Undrain")
        self.told.append(request)
        return worker_pb.UndrainResponse(incarnation="1")


@pytest.fixture
def server() -> Iterator[FakeInference]:
    fake = FakeInference()
    with ThreadPoolExecutor(4) as pool:
        grpc_server = grpc.server(pool)
        inference_pb2_grpc.add_InferenceServicer_to_server(fake, grpc_server)
        worker_pb2_grpc.add_ClusterServicer_to_server(fake, grpc_server)
        worker_pb2_grpc.add_DoorServicer_to_server(fake, grpc_server)
        fake.address = f"127.0.0.1:{grpc_server.add_insecure_port('127.0.0.1:0')}"
        grpc_server.start()
        yield fake
        fake.cancelled.set()
        grpc_server.stop(None).wait()


Ask = Callable[..., Answer]


def ask_sync(
    address: str, prompt: str | None = "Hi", waits: dict[str, float] | None = None, **options: Any
) -> Answer:
    with Client(address, **(waits or {})) as client:
        return client.generate(prompt, **options).result()


def ask_async(
    address: str, prompt: str | None = "Hi", waits: dict[str, float] | None = None, **options: Any
) -> Answer:
    async def run() -> Answer:
        async with AsyncClient(address, **(waits or {})) as client:
            return await client.generate(prompt, **options).result()

    return asyncio.run(run())


@pytest.fixture(params=[ask_sync, ask_async], ids=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    chosen: Ask = request.param
    return chosen


@pytest.fixture
def penstock(capsys: pytest.CaptureFixture[str]) -> Penstock:
    def call(*arguments: str) -> Ended:
        with pytest.raises(SystemExit) as ended:
            run(arguments)
        captured = capsys.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, captured.err)

    return call
