"""CPU that the router spends on a streamed request while nothing, 1 % and all of them is traced.

    python -m bench.tracing [--requests 160] [--rounds 21] [--json]

Three routers of one run take turns in changing order, each before a stub worker of its own; CPU is
that of the router's process with all its threads, those that export among them. A round's ratio is
to the router without tracing in the same round. The collector takes in and forgets.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import grpc
import grpc.aio
import uvloop

from bench.router_http import ask_all, by_grpc, by_http, free_port
from bench.router_processes import (
    SHIPPED,
    RelayedLoad,
    process,
    router_config,
    run_router,
    run_worker,
    serving,
)
from cluster.tracing import TraceSettings

SHARES: Final = (None, 0.01, 1.0)  # traced; None: tracing is off
_SERVICE: Final = "opentelemetry.proto.collector.trace.v1.TraceService"


@dataclass(frozen=True, slots=True, kw_only=True)
class TracingCost:
    """Medians over rounds, of one request."""

    way: str
    share: float | None
    cpu_ms: float
    ratio: float  # to the router without tracing, in the same round
    quartiles: tuple[float, float]  # of this ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    share: float | None
    pid: int
    address: str
    http: str


def cpu_ns(pid: int) -> int:
    """Of all its threads, as the scheduler counts: ticks are too coarse to tell a hundredth."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


@contextmanager
def collector() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1))
    handler = grpc.unary_unary_rpc_method_handler(lambda data, context: b"")
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(_SERVICE, {"Export": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@contextmanager
def contestant(
    share: float | None, endpoint: str, load: RelayedLoad, checkpoint: Path
) -> Iterator[Contestant]:
    settings = TraceSettings() if share is None else TraceSettings(endpoint=endpoint, share=share)
    with tempfile.TemporaryDirectory() as directory:
        http = f"127.0.0.1:{free_port()}"
        config = replace(
            router_config(checkpoint, Path(directory)), http=http, metrics=None, tracing=settings
        )
        with (
            process(run_worker, load, config) as (_, worker),
            process(run_router, config) as (router, pipe),
        ):
            worker.recv()
            address = pipe.recv()
            worker.send(address)
            uvloop.run(serving(address))
            yield Contestant(share=share, pid=router.pid or 0, address=address, http=http)


async def measure(
    contestants: list[Contestant], way: str, load: RelayedLoad, num_rounds: int
) -> list[TracingCost]:
    spent: dict[float | None, list[float]] = {each.share: [] for each in contestants}
    async with AsyncExitStack() as stack:
        asks = [
            by_grpc(await stack.enter_async_context(grpc.aio.insecure_channel(each.address)))
            if way == "grpc"
            else by_http(each.http, is_stream=True)
            for each in contestants
        ]
        turns = list(zip(contestants, asks, strict=True))
        for number in range(num_rounds + 1):
            turns = [*turns[1:], turns[0]]
            for each, ask in turns:
                before = cpu_ns(each.pid)
                num = len(await ask_all(ask, load))
                if number:
                    spent[each.share].append((cpu_ns(each.pid) - before) / num / 1e6)
    return [_cost(way, share, spent) for share in SHARES]


def _cost(way: str, share: float | None, spent: dict[float | None, list[float]]) -> TracingCost:
    ratios = [mine / off for mine, off in zip(spent[share], spent[None], strict=True)]
    first, _, third = statistics.quantiles(ratios, n=4)
    return TracingCost(
        way=way,
        share=share,
        cpu_ms=statistics.median(spent[share]),
        ratio=statistics.median(ratios),
        quartiles=(first, third),
    )


def run(load: RelayedLoad, checkpoint: Path, num_rounds: int) -> list[TracingCost]:
    with ExitStack() as stack:
        endpoint = stack.enter_context(collector())
        contestants = [
            stack.enter_context(contestant(share, endpoint, load, checkpoint)) for share in SHARES
        ]
        return [
            cost
            for way in ("grpc", "http")
            for cost in uvloop.run(measure(contestants, way, load, num_rounds))
        ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--requests", type=int, default=160, help="of a turn")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--messages", type=int, default=64, help="of an answer")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    load = RelayedLoad(
        num_messages=given.requests * given.messages,
        concurrency=given.concurrency,
        short=1,
        long=given.messages,
        tokens_per_message=1,
    )
    costs = run(load, given.checkpoint, given.rounds)
    for cost in costs:
        print(json.dumps(asdict(cost)) if given.json else _line(cost))
    return 0


def _line(cost: TracingCost) -> str:
    share = "off" if cost.share is None else f"{100 * cost.share:g} %"
    first, third = cost.quartiles
    return (
        f"{cost.way:<5} traced {share:<6} {cost.cpu_ms:.3f} ms of CPU a request,"
        f" {cost.ratio:.3f} times ({first:.3f} to {third:.3f})"
    )


if __name__ == "__main__":
    sys.exit(main())
