"""CPU that the router spends on a streamed request by HTTP, beside one by gRPC in the same run.

    python -m bench.router_http [--messages 64] [--step-ms 5] [--rounds 7] [--json]

One stub worker answers both; CPU is that of the router's process alone (/proc). Rounds alternate.
With a step each message is one token at a time; without, answers come as fast as they are read.
"""

import argparse
import asyncio
import json
import socket
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import grpc.aio
import uvloop

from bench.router_processes import (
    GENERATE,
    MODEL,
    SHIPPED,
    RelayedLoad,
    cpu_s,
    process,
    router_config,
    run_router,
    run_worker,
    serving,
)
from penstock.v1 import inference_pb2 as pb

NUM_IDS = 256
PROMPT = [number % 1000 for number in range(NUM_IDS)]

Ask = Callable[[], Awaitable[int]]  # one request; the messages that its caller received


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpCost:
    """Medians, of one request."""

    grpc_ms: float  # of CPU
    http_ms: float
    http_whole_ms: float  # not streamed
    grpc_messages: float
    http_messages: float
    load: RelayedLoad
    num_rounds: int


def by_grpc(channel: grpc.aio.Channel) -> Ask:
    generate: Any = channel.unary_stream(GENERATE, None, None)
    request = pb.GenerateRequest(token_ids={"ids": PROMPT}, stop={"max_tokens": 64})
    data = request.SerializeToString()

    async def ask() -> int:
        return sum([1 async for _ in generate(data)])

    return ask


def by_http(address: str, *, is_stream: bool) -> Ask:
    """Over connections that are kept."""
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 64, "stream": is_stream}
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {len(data)}\r\n\r\n".encode() + data
    host, _, port = address.rpartition(":")
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask() -> int:
        reader, writer = idle.pop() if idle else await asyncio.open_connection(host, int(port))
        writer.write(request)
        answer = await (_streamed(reader) if is_stream else _whole(reader))
        idle.append((reader, writer))
        return answer

    return ask


async def _streamed(reader: asyncio.StreamReader) -> int:
    head = await reader.readuntil(b"\r\n\r\n")
    assert b" 200 " in head, head
    num_messages = 0
    while size := int(await reader.readline(), 16):
        await reader.readexactly(size + 2)
        num_messages += 1
    await reader.readexactly(2)
    return num_messages


async def _whole(reader: asyncio.StreamReader) -> int:
    head = await reader.readuntil(b"\r\n\r\n")
    assert b" 200 " in head, head
    size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    await reader.readexactly(size)
    return 1


async def measure(
    pid: int, address: str, http: str, load: RelayedLoad, num_rounds: int
) -> HttpCost:
    spent: dict[str, list[float]] = {}
    received: dict[str, list[int]] = {}
    async with grpc.aio.insecure_channel(address) as channel:
        ways = {
            "grpc": by_grpc(channel),
            "http": by_http(http, is_stream=True),
            "whole": by_http(http, is_stream=False),
        }
        for number in range(num_rounds + 1):
            for name, ask in ways.items():
                before = cpu_s(pid)
                numbers = await ask_all(ask, load)
                if number:
                    ms = 1e3 * (cpu_s(pid) - before) / len(numbers)
                    spent.setdefault(name, []).append(ms)
                    received.setdefault(name, []).extend(numbers)
    ms_of = {name: statistics.median(values) for name, values in spent.items()}
    return HttpCost(
        grpc_ms=ms_of["grpc"],
        http_ms=ms_of["http"],
        http_whole_ms=ms_of["whole"],
        grpc_messages=statistics.median(received["grpc"]),
        http_messages=statistics.median(received["http"]),
        load=load,
        num_rounds=num_rounds,
    )


async def ask_all(ask: Ask, load: RelayedLoad) -> list[int]:
    num_each = load.num_messages // load.long // load.concurrency

    async def one_after_another() -> list[int]:
        return [await ask() for _ in range(num_each)]

    lists = await asyncio.gather(*(one_after_another() for _ in range(load.concurrency)))
    return [number for numbers in lists for number in numbers]


def run(load: RelayedLoad, checkpoint: Path, num_rounds: int) -> HttpCost:
    with tempfile.TemporaryDirectory() as directory:
        http = f"127.0.0.1:{free_port()}"
        config = replace(router_config(checkpoint, Path(directory)), http=http)
        with (
            process(run_worker, load, config) as (_, worker),
            process(run_router, config) as (router, pipe),
        ):
            worker.recv()
            address = pipe.recv()
            worker.send(address)
            uvloop.run(serving(address))
            measured = measure(router.pid or 0, address, http, load, num_rounds)
            cost: HttpCost = uvloop.run(measured)
            return cost


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return int(bound.getsockname()[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--requests", type=int, default=160, help="of a round, by each way")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--messages", type=int, default=64, help="of an answer")
    parser.add_argument("--step-ms", type=float, default=0.0, help="before each message")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-frames", action="store_true", help="the worker answers by gRPC")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    load = RelayedLoad(
        num_messages=given.requests * given.messages,
        concurrency=given.concurrency,
        short=1,
        long=given.messages,
        tokens_per_message=1,
        step_s=given.step_ms / 1000,
        by_frames=not given.no_frames,
    )
    cost = run(load, given.checkpoint, given.rounds)
    print(json.dumps(asdict(cost)) if given.json else table(cost))
    return 0


def table(cost: HttpCost) -> str:
    return (
        f"CPU of a request, ms: gRPC {cost.grpc_ms:.2f} ({cost.grpc_messages:.0f} messages), HTTP"
        f" streamed {cost.http_ms:.2f} ({cost.http_messages:.0f}), whole {cost.http_whole_ms:.2f};"
        f" {NUM_IDS} ids in, {cost.load.long} messages out, {cost.load.concurrency} at once, a"
        f" message each {cost.load.step_s * 1000:g} ms, {cost.num_rounds} rounds"
    )


if __name__ == "__main__":
    sys.exit(main())
