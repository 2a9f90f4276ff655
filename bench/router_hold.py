"""How long a prompt of 65,000 tokens holds the router's event loop at a time, beside 64 streams:
`python -m bench.router_hold [--prompts 1000] [--json]`.

Of every callback of the loop the thread's own processor time, so that what runs beside it does not
count; in loops of 20,000 turns, too, because machines differ.
"""

import argparse
import asyncio
import asyncio.events
import gc
import json
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc.aio

from bench.machine import describe
from bench.router_processes import (
    GENERATE,
    RelayedLoad,
    process,
    request,
    router_config,
    run_worker,
    serving,
)
from bench.router_requests import long_checkpoint
from penstock.v1 import inference_pb2 as pb
from router.config import RouterConfig
from router.router import Router

NUM_TOKENS = 65_000
NUM_STREAMS = 64
LOAD = RelayedLoad(num_messages=1, concurrency=1, short=1, long=200, tokens_per_message=1)


@contextmanager
def held() -> Iterator[list[float]]:
    """The thread's own seconds of every callback of the loop."""
    spent: list[float] = []
    handle: Any = asyncio.events.Handle
    run = handle._run

    def timed(each: Any) -> None:
        begun = time.thread_time()
        run(each)
        spent.append(time.thread_time() - begun)

    with patch.object(handle, "_run", timed):
        yield spent


def plain_loop_s() -> float:
    """The thread's own seconds of 20,000 turns, the median of seven: machines differ."""
    taken = []
    for _ in range(7):
        begun = time.thread_time()
        sum(turn * turn for turn in range(20_000))
        taken.append(time.thread_time() - begun)
    return statistics.median(taken)


def long_request(draw: random.Random) -> bytes:
    """Of no prompt that was asked before."""
    ids = [draw.randrange(2000) for _ in range(NUM_TOKENS)]
    return pb.GenerateRequest(token_ids={"ids": ids}, stop={"max_tokens": 1}).SerializeToString()


def run_held(config: RouterConfig, pipe: Connection) -> None:
    """A router's process, with asyncio's own loop: uvloop's callbacks cannot be timed. Whatever it
    is sent, it answers with the longest callback since it was last asked."""
    with held() as spent:

        def tell(address: str) -> None:
            gc.collect()
            gc.freeze()  # as a router's process does
            pipe.send(address)
            asyncio.get_running_loop().add_reader(pipe.fileno(), answer)

        def answer() -> None:
            pipe.recv()
            pipe.send(max(spent))
            spent.clear()

        asyncio.run(Router(config).run(asyncio.Event(), tell))


async def longest_of_each(num_prompts: int, directory: Path) -> list[float]:
    """Seconds of the longest callback while each prompt is served."""
    config, draw = router_config(long_checkpoint(directory), directory), random.Random(1)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    router = context.Process(target=run_held, args=(config, theirs), daemon=True)
    router.start()
    try:
        address = await asyncio.to_thread(ours.recv)
        with process(run_worker, LOAD, config) as (_, pipe):
            await asyncio.to_thread(pipe.recv)
            pipe.send(address)
            await serving(address)
            async with grpc.aio.insecure_channel(address) as channel:
                generate = channel.unary_stream(GENERATE, None, None)
                streams = [asyncio.create_task(_stream_on(generate)) for _ in range(NUM_STREAMS)]
                longest = []
                for _ in range(num_prompts):
                    data = await asyncio.to_thread(long_request, draw)
                    await asyncio.to_thread(_ask, ours)
                    async for _ in generate(data):
                        pass
                    longest.append(await asyncio.to_thread(_ask, ours))
                for stream in streams:
                    stream.cancel()
                await asyncio.gather(*streams, return_exceptions=True)
    finally:
        router.terminate()
        router.join()
    return sorted(longest)


def _ask(pipe: Any) -> float:
    pipe.send(None)
    answer: float = pipe.recv()
    return answer


async def _stream_on(generate: Any) -> None:
    while True:
        async for _ in generate(request(2).SerializeToString()):
            await asyncio.sleep(0.01)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.router_hold", description=__doc__)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        longest = asyncio.run(longest_of_each(flags.prompts, Path(directory)))
    plain = plain_loop_s()
    figures = {
        "p50_ms": 1e3 * statistics.median(longest),
        "p99_ms": 1e3 * longest[int(0.99 * len(longest))],
        "worst_ms": 1e3 * longest[-1],
        "plain_loop_ms": 1e3 * plain,
    }
    if flags.json:
        print(json.dumps({"machine": describe(), **figures}))
    else:
        print("the longest callback of a prompt, ms of the thread's own processor time:")
        print("  ".join(f"{name.removesuffix('_ms')} {ms:.2f}" for name, ms in figures.items()))
        print(describe())
    return 0


if __name__ == "__main__":
    sys.exit(main())
