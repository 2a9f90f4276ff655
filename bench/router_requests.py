"""Processor time that a router's process spends on a request, beside a bare grpc.aio echo."""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from bench.router_processes import (
    GENERATE,
    SHIPPED,
    RelayedLoad,
    cpu_s,
    process,
    router_config,
    run_echo,
    run_router,
    run_worker,
    serving,
)
from penstock.v1 import inference_pb2 as pb

LONG_PROMPT = 4096
_CONCURRENCY = 8
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds."""

    router: float
    echo: float


@dataclass(frozen=True, slots=True)
class RequestCosts:
    short: Cost  # a line of text
    long: Cost  # 4,096 token ids


async def request_costs(directory: Path, num_requests: int) -> RequestCosts:
    """Answers are one message; what waits is the client, so that processes are never idle."""
    load = RelayedLoad(
        num_messages=0, concurrency=_CONCURRENCY, short=1, long=1, tokens_per_message=1
    )
    config = router_config(long_checkpoint(directory), directory)
    with (
        process(run_worker, load, config) as (_, worker),
        process(run_router, config) as (router, router_pipe),
        process(run_echo, load) as (echo, echo_pipe),
    ):
        worker.recv()
        addresses = [router_pipe.recv(), echo_pipe.recv()]
        worker.send(addresses[0])
        await serving(addresses[0])
        pids = [router.pid or 0, echo.pid or 0]
        short = await _cost(pids, addresses, _text_request(), num_requests)
        return RequestCosts(short, await _cost(pids, addresses, _long_request(), num_requests))


async def _cost(pids: list[int], addresses: list[str], data: bytes, num: int) -> Cost:
    """Rounds alternate; the first is to warm up."""
    spent_us = [0.0, 0.0]
    for number in range(_ROUNDS + 1):
        for which, (pid, address) in enumerate(zip(pids, addresses, strict=True)):
            before = cpu_s(pid)
            await _ask(address, data, num)
            if number:
                spent_us[which] += 1e6 * (cpu_s(pid) - before) / num / _ROUNDS
    return Cost(*spent_us)


async def _ask(address: str, data: bytes, num: int) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        generate = channel.unary_stream(GENERATE, None, None)

        async def client(num: int) -> None:
            for _ in range(num):
                messages = [message async for message in generate(data)]
                assert len(messages) == 1

        await asyncio.gather(*(client(num // _CONCURRENCY) for _ in range(_CONCURRENCY)))


def _text_request() -> bytes:
    return pb.GenerateRequest(
        text="What does a router cost?", stop={"max_tokens": 1}
    ).SerializeToString()


def _long_request() -> bytes:
    ids = pb.TokenIds(ids=[number % 1000 for number in range(LONG_PROMPT)])
    return pb.GenerateRequest(token_ids=ids, stop={"max_tokens": 1}).SerializeToString()


def long_checkpoint(directory: Path) -> Path:
    """The shipped one, said to have room for long prompts: nothing is computed with it."""
    checkpoint = directory / "checkpoint"
    checkpoint.mkdir()
    for path in SHIPPED.iterdir():
        (checkpoint / path.name).symlink_to(path)
    config = json.loads((SHIPPED / "config.json").read_text())
    config["max_position_embeddings"] = 1 << 17
    (checkpoint / "config.json").unlink()
    (checkpoint / "config.json").write_text(json.dumps(config))
    return checkpoint
