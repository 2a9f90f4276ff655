"""CPU that the router spends on a relayed message, beside a bare grpc.aio relay in the same run.

    python -m bench.router_relay [--messages 128] [--rounds 7] [--json]

Both pass the same answers of one stub worker to the same client; CPU is that of the relaying
process alone (/proc). Rounds alternate. What a message costs is the slope between short and
long answers; what a request costs beside its messages is the rest.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc.aio
import uvloop

from bench.router_processes import (
    GENERATE,
    SHIPPED,
    RelayedLoad,
    cpu_s,
    process,
    request,
    router_config,
    run_bare_relay,
    run_router,
    run_worker,
    serving,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayCost:
    """Medians of CPU in the relaying process."""

    us_per_message: float
    us_per_request: float
    us_per_message_of_a_long_answer: float  # its share of the request included


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayResult:
    router: RelayCost
    bare: RelayCost
    ratio: float  # of a message
    ratio_of_a_long_answer: float
    messages_per_s: float  # through the router, client and worker on the same machine
    load: RelayedLoad
    num_rounds: int


async def relay_all(address: str, load: RelayedLoad, num_messages: int) -> int:
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


async def measure(
    relays: dict[str, tuple[int, str]], load: RelayedLoad, num_rounds: int
) -> RelayResult:
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
    return RelayResult(
        router=router,
        bare=bare,
        ratio=router.us_per_message / bare.us_per_message,
        ratio_of_a_long_answer=medians["router", load.long] / medians["bare", load.long],
        messages_per_s=statistics.median(rates),
        load=load,
        num_rounds=num_rounds,
    )


def _cost(name: str, medians: dict[tuple[str, int], float], load: RelayedLoad) -> RelayCost:
    short, long = medians[name, load.short], medians[name, load.long]
    us_per_message = (long - short) / (load.long - load.short)
    return RelayCost(
        us_per_message=us_per_message,
        us_per_request=short - load.short * us_per_message,
        us_per_message_of_a_long_answer=long / load.long,
    )


def run(load: RelayedLoad, checkpoint: Path, num_rounds: int) -> RelayResult:
    with tempfile.TemporaryDirectory() as directory:
        config = router_config(checkpoint, Path(directory))
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
                result: RelayResult = uvloop.run(measure(relays, load, num_rounds))
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
    load = RelayedLoad(
        num_messages=arguments.volume,
        concurrency=arguments.concurrency,
        short=8,
        long=arguments.messages,
        tokens_per_message=arguments.tokens,
    )
    result = run(load, arguments.checkpoint, arguments.rounds)
    print(json.dumps(asdict(result)) if arguments.json else table(result))
    return 0


def table(result: RelayResult) -> str:
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
