"""The processes that a router's cost is measured with: a stub worker, the router, and bare
grpc.aio servers beside it."""

import asyncio
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import uvloop
import yaml

from cluster.channel import open_channel
from cluster.door import door_service
from cluster.events import EventLog
from cluster.lateness import AttentiveClock
from cluster.membership import new_incarnation
from cluster.open_calls import OpenCalls
from cluster.proof import Doorkeeper, audience_of
from cluster.rpc import UNBOUNDED, Call, Serve, Server, server_options, service_handlers
from cluster.types import (
    Fingerprint,
    KvLayout,
    LoadReport,
    Member,
    PrefillCost,
    Role,
    WorkerAddress,
    WorkerId,
)
from cluster.watch import WatchFeed
from penstock.v1 import inference_pb2 as pb
from penstock.v1 import worker_pb2
from router.config import RouterConfig
from router.front.text import Text
from router.router import Router
from worker.frame_call import FrameCall
from worker.frame_server import FrameServer
from worker.outliving import AnswerKey, Grace
from worker.registrar import Heartbeat, RpcRegistrar

TOKEN = "token-of-the-benchmark"
MODEL = "stub"
GENERATE = "/penstock.v1.Inference/Generate"
DECODE = "/penstock.v1.Decode/Generate"
SHIPPED = Path(__file__).parents[1] / "shipped_model" / "penstock-tiny"
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayedLoad:
    """What is relayed in a round: `num_messages` in all, in answers of the one or other length."""

    num_messages: int
    concurrency: int
    short: int  # messages an answer
    long: int
    tokens_per_message: int
    step_s: float = 0.0  # before each message; 0: as fast as it is read
    by_frames: bool = True  # from worker to router; else by gRPC


def router_config(checkpoint: Path, directory: Path) -> RouterConfig:
    """With secrets of its own, in this folder."""
    secrets_file = directory / "secrets.yaml"
    secrets_file.touch(mode=0o600)
    secrets_file.write_text(yaml.safe_dump({"cluster_token": TOKEN, "hash_secret": "00" * 16}))
    return RouterConfig(checkpoint=checkpoint, model=MODEL, secrets_file=secrets_file)


def answer(load: RelayedLoad, num_messages: int) -> list[bytes]:
    """The messages of one answer, as a decode worker would send them."""
    messages = []
    for number in range(num_messages):
        first = number * load.tokens_per_message
        ids = range(first, first + load.tokens_per_message)
        delta = pb.Delta(index=first, token_ids=[i % 1000 for i in ids], text="word " * len(ids))
        messages.append(pb.GenerateResponse(deltas=[delta]))
    messages[0].accepted.request_id = "benchmark"
    messages[0].accepted.resume_secret = bytes(16)  # as of one that outlives its router
    messages[-1].finished.usage.completion_tokens = num_messages * load.tokens_per_message
    return [message.SerializeToString() for message in messages]


async def run_worker(load: RelayedLoad, config: RouterConfig, pipe: Connection) -> None:
    """A decode worker that answers as fast as it is read; long unless asked for one token."""
    short, long, incarnation = answer(load, load.short), answer(load, load.long), new_incarnation()
    report = LoadReport(num_free_blocks=9999, num_blocks=9999, prefill_cost=PrefillCost(c0=0, c1=1))
    feed = WatchFeed(EventLog(incarnation), lambda: report)

    async def generate(request: worker_pb2.DecodeRequest, call: Call | FrameCall) -> None:
        feed.admitted(request.request_id)
        if isinstance(call, FrameCall):
            key = AnswerKey(request.tenant, request.request_id, request.resume_secret)
            call.outlive(key, num_emitted=[0])
        for message in short if request.params.max_tokens == 1 else long:
            if load.step_s:
                await asyncio.sleep(load.step_s)
            await call.send(message)

    async def watch(request: worker_pb2.WatchRequest, call: Call) -> None:
        await feed.watch(request, call.send)

    door = Doorkeeper(TOKEN)
    frames = FrameServer("penstock.v1.Decode", "Generate", generate, AttentiveClock(), Grace())
    rpcs: dict[str, Serve] = {"Generate": generate}
    if load.by_frames:
        rpcs["Frames"] = frames.invite
    services = [
        door_service(door),  # the bare relay gets in without
        service_handlers("penstock.v1.Decode", rpcs),
        service_handlers("penstock.v1.Worker", {"Watch": watch}, deadlines=UNBOUNDED),
    ]
    await frames.start("127.0.0.1", None, OpenCalls())
    async with Server(services) as server:
        pipe.send(server.address)
        router = await asyncio.to_thread(pipe.recv)
        member = _member(server.address, incarnation, config)
        door.audience = audience_of(member.worker)
        async with open_channel(router, TOKEN) as channel:
            await Heartbeat(RpcRegistrar(channel), member).run()


def _member(address: str, incarnation: Any, config: RouterConfig) -> Member:
    identity = Text.load(config, b"secret").identity
    fingerprint = Fingerprint(
        model_digest=identity.model_digest,
        tokenizer_digest=identity.tokenizer_digest,
        template_digest=identity.template_digest,
        hash_grain=identity.hash_grain,
        layout=KvLayout(num_layers=1, num_blocks=9999, block_size=16, num_kv_heads=1, head_dim=8),
    )
    worker = WorkerAddress(
        worker_id=WorkerId("stub"),
        incarnation=incarnation,
        address=address,
        transports={},
        fingerprint=fingerprint,
    )
    return Member(
        worker=worker, role=Role.DECODE, model=MODEL, context_length=2048, max_sequences=4096
    )


async def run_router(config: RouterConfig, pipe: Connection) -> None:
    await Router(config).run(asyncio.Event(), pipe.send)


def request(max_tokens: int) -> pb.GenerateRequest:
    return pb.GenerateRequest(text="What does a router cost?", stop={"max_tokens": max_tokens})


def decode_request(max_tokens: int) -> bytes:
    params = worker_pb2.ResolvedParams(max_tokens=max_tokens)
    return worker_pb2.DecodeRequest(prompt_token_ids=[1], params=params).SerializeToString()


async def run_bare_relay(worker: str, pipe: Connection) -> None:
    """The least that relays: no parsing, no placement, no counting."""
    async with grpc.aio.insecure_channel(worker) as channel:
        upstream = channel.unary_stream(DECODE, None, None)
        requests = {request(n).SerializeToString(): decode_request(n) for n in (1, 2)}

        async def relay(data: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
            async for message in upstream(requests[data]):
                await context.write(message)

        await _serve_bare(relay, pipe)


async def run_echo(load: RelayedLoad, pipe: Connection) -> None:
    """The least that answers: always the same short answer."""
    messages = answer(load, load.short)

    async def echo(data: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        for message in messages:
            await context.write(message)

    await _serve_bare(echo, pipe)


async def _serve_bare(generate: Any, pipe: Connection) -> None:
    server = grpc.aio.server(options=server_options())
    handlers = {"Generate": grpc.unary_stream_rpc_method_handler(generate)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("penstock.v1.Inference", handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    pipe.send(f"127.0.0.1:{port}")
    await server.wait_for_termination()


def _main_of_process(main: Any, *arguments: Any) -> None:
    uvloop.run(main(*arguments))


@contextmanager
def process(main: Any, *arguments: Any) -> Iterator[tuple[multiprocessing.Process, Any]]:
    """A process and our end of its pipe, which is its last argument."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_main_of_process, args=(main, *arguments, theirs), daemon=True)
    child.start()
    try:
        yield child, ours  # type: ignore[misc]
    finally:
        child.terminate()
        child.join()


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def serving(address: str) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with grpc.aio.insecure_channel(address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        while (await watch.read()).status != health_pb2.HealthCheckResponse.SERVING:
            pass
