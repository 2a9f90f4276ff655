"""CPU that the router spends on a relayed message, beside a bare grpc.aio relay in the same run.

    python -m bench.router_relay [--messages 128] [--rounds 7] [--json]

Both pass the same answers of one stub worker to the same client; CPU is that of the relaying
process alone (/proc). Rounds alternate. What a message costs is the slope between short and
long answers; what a request costs beside its messages is the rest.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import uvloop
import yaml

from cluster.channel import open_channel
from cluster.events import EventLog
from cluster.membership import new_incarnation
from cluster.registrar import Heartbeat, RpcRegistrar
from cluster.rpc import UNBOUNDED, Call, Server, server_options, service_handlers
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
from router.router import Router
from router.text import Text

TOKEN = "token-of-the-benchmark"
MODEL = "stub"
GENERATE = "/penstock.v1.Inference/Generate"
DECODE = "/penstock.v1.Decode/Generate"
SHIPPED = Path(__file__).parents[1] / "models" / "penstock-tiny"
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is relayed in a round: `num_messages` in all, in answers of the one or other length."""

    num_messages: int
    concurrency: int
    short: int  # messages an answer
    long: int
    tokens_per_message: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Medians of CPU in the relaying process."""

    us_per_message: float
    us_per_request: float
    us_per_message_of_a_long_answer: float  # its share of the request included


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    router: Cost
    bare: Cost
    ratio: float  # of a message
    ratio_of_a_long_answer: float
    messages_per_s: float  # through the router, client and worker on the same machine
    load: Load
    num_rounds: int


# The processes


def answer(load: Load, num_messages: int) -> list[bytes]:
    """The messages of one answer, as a decode worker would send them."""
    messages = []
    for number in range(num_messages):
        first = number * load.tokens_per_message
        ids = range(first, first + load.tokens_per_message)
        delta = pb.Delta(index=first, token_ids=[i % 1000 for i in ids], text="word " * len(ids))
        messages.append(pb.GenerateResponse(deltas=[delta]))
    messages[0].accepted.request_id = "benchmark"
    messages[-1].finished.usage.completion_tokens = num_messages * load.tokens_per_message
    return [message.SerializeToString() for message in messages]


async def run_worker(load: Load, config: RouterConfig, pipe: Connection) -> None:
    """A decode worker that answers as fast as it is read; long unless asked for one token."""
    short, long, incarnation = answer(load, load.short), answer(load, load.long), new_incarnation()
    report = LoadReport(num_free_blocks=9999, num_blocks=9999, prefill_cost=PrefillCost(c0=0, c1=1))
    feed = WatchFeed(EventLog(incarnation), lambda: report)

    async def generate(request: worker_pb2.DecodeRequest, call: Call) -> None:
        feed.admitted(request.request_id)
        for message in short if request.params.max_tokens == 1 else long:
            await call.send(message)

    async def watch(request: worker_pb2.WatchRequest, call: Call) -> None:
        await feed.watch(request, call.send)

    services = [
        service_handlers("penstock.v1.Decode", {"Generate": generate}),
        service_handlers("penstock.v1.Worker", {"Watch": watch}, deadlines=UNBOUNDED),
    ]
    async with Server(services) as server:
        pipe.send(server.address)
        router = await asyncio.to_thread(pipe.recv)
        member = _member(server.address, incarnation, config)
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

        server = grpc.aio.server(options=server_options())
        handlers = {"Generate": grpc.unary_stream_rpc_method_handler(relay)}
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


# The measurement


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def relay_all(address: str, load: Load, num_messages: int) -> int:
    """Reads as many answers of this length as the load has; returns their number."""
    data = request(1 if num_messages == load.short else 2).SerializeToString()
    num_requests = load.num_messages // num_messages
    async with grpc.aio.insecure_channel(address) as channel:
        generate = channel.unary_stream(GENERATE, None, None)
        places = asyncio.Semaphore(load.concurrency)

        async def one() -> None:
            async with places:
                num_read = 0
                async for _ in generate(data):
                    num_read += 1
                assert num_read == num_messages

        await asyncio.gather(*(one() for _ in range(num_requests)))
    return num_requests


async def serving(address: str) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with grpc.aio.insecure_channel(address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        while (await watch.read()).status != health_pb2.HealthCheckResponse.SERVING:
            pass


async def measure(relays: dict[str, tuple[int, str]], load: Load, num_rounds: int) -> Result:
    """`relays`: pid and address by name. One round each unmeasured, to warm up."""
    spent: dict[tuple[str, int], list[float]] = {}
    rates = []
    clock = asyncio.get_running_loop().time
    for number in range(num_rounds + 1):
        for num_messages in (load.short, load.long):
            for name, (pid, address) in relays.items():
                before, started = cpu_s(pid), clock()
                num_requests = await relay_all(address, load, num_messages)
                if number:
                    us = 1e6 * (cpu_s(pid) - before) / num_requests
                    spent.setdefault((name, num_messages), []).append(us)
                    if (name, num_messages) == ("router", load.long):
                        rates.append(num_requests * num_messages / (clock() - started))
    medians = {key: statistics.median(values) for key, values in spent.items()}
    router, bare = _cost("router", medians, load), _cost("bare", medians, load)
    return Result(
        router=router,
        bare=bare,
        ratio=router.us_per_message / bare.us_per_message,
        ratio_of_a_long_answer=medians["router", load.long] / medians["bare", load.long],
        messages_per_s=statistics.median(rates),
        load=load,
        num_rounds=num_rounds,
    )


def _cost(name: str, medians: dict[tuple[str, int], float], load: Load) -> Cost:
    short, long = medians[name, load.short], medians[name, load.long]
    us_per_message = (long - short) / (load.long - load.short)
    return Cost(
        us_per_message=us_per_message,
        us_per_request=short - load.short * us_per_message,
        us_per_message_of_a_long_answer=long / load.long,
    )


def run(load: Load, checkpoint: Path, num_rounds: int) -> Result:
    with tempfile.TemporaryDirectory() as directory:
        secrets_file = Path(directory) / "secrets.yaml"
        secrets_file.touch(mode=0o600)
        secrets_file.write_text(yaml.safe_dump({"cluster_token": TOKEN, "hash_secret": "00" * 16}))
        config = RouterConfig(checkpoint=checkpoint, model=MODEL, secrets_file=secrets_file)
        with (
            process(run_worker, load, config) as (_, worker),
            process(run_router, config) as (router, router_pipe),
        ):
            worker_address, router_address = worker.recv(), router_pipe.recv()
            worker.send(router_address)
            with process(run_bare_relay, worker_address) as (bare, bare_pipe):
                relays = {
                    "router": (router.pid or 0, router_address),
                    "bare": (bare.pid or 0, bare_pipe.recv()),
                }
                uvloop.run(serving(router_address))
                result: Result = uvloop.run(measure(relays, load, num_rounds))
                return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--volume", type=int, default=12_000, help="messages in a round")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--messages", type=int, default=128, help="of a long answer")
    parser.add_argument("--tokens", type=int, default=1, help="a message")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    load = Load(
        num_messages=arguments.volume,
        concurrency=arguments.concurrency,
        short=8,
        long=arguments.messages,
        tokens_per_message=arguments.tokens,
    )
    result = run(load, arguments.checkpoint, arguments.rounds)
    print(json.dumps(asdict(result)) if arguments.json else table(result))
    return 0


def table(result: Result) -> str:
    lines = [f"{'CPU, µs':34}{'router':>9}{'bare':>9}{'ratio':>8}"]
    for field, title in (
        ("us_per_message", "a message"),
        ("us_per_request", "a request, beside its messages"),
        ("us_per_message_of_a_long_answer", f"a message of {result.load.long}, all in"),
    ):
        router, bare = getattr(result.router, field), getattr(result.bare, field)
        lines.append(f"{title:34}{router:9.1f}{bare:9.1f}{router / bare:8.2f}")
    lines.append(
        f"{result.load.tokens_per_message} tokens a message, {result.messages_per_s:,.0f} "
        f"messages/s, {result.num_rounds} rounds"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
