"""What one large request costs everybody: how long it holds the router's event loop at a time."""

import asyncio
import asyncio.events
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from bench.router_hold import held, plain_loop_s
from bench.router_processes import RelayedLoad, process, router_config, run_worker, serving
from bench.router_requests import long_checkpoint
from penstock.v1 import inference_pb2 as pb
from router.router import Router

MAX_HOLD = 3.5  # times a plain loop of 20,000 turns: 4 ms where that takes 1.15
LONG = 65_000
LOAD = RelayedLoad(num_messages=1, concurrency=1, short=1, long=1, tokens_per_message=1)


def _ids() -> pb.GenerateRequest:
    ids = [number % 2000 for number in range(LONG)]
    return pb.GenerateRequest(token_ids={"ids": ids}, stop={"max_tokens": 1})


def _chat() -> pb.Chat:
    return pb.Chat(messages=[pb.ChatMessage(role="user", content="What is len? " * 40_000)])


REQUESTS: dict[str, Callable[[], tuple[str, Any]]] = {
    "ids": lambda: ("Generate", _ids()),
    "text": lambda: (
        "Generate",
        pb.GenerateRequest(text="The fox jumps. " * 6_500, stop={"max_tokens": 1}),
    ),
    "text to tokenise": lambda: ("Tokenize", pb.TokenizeRequest(text="The fox. " * 100_000)),
    "chat to tokenise": lambda: ("Tokenize", pb.TokenizeRequest(chat=_chat())),
    "ids to detokenise": lambda: ("Detokenize", pb.DetokenizeRequest(token_ids=[300] * LONG)),
}


async def ended(call: Any) -> None:
    if hasattr(call, "read"):
        assert len([message async for message in call]) == 1
    else:
        await call


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize(
    "kind",
    ["ids", *(pytest.param(kind, marks=pytest.mark.prove) for kind in REQUESTS if kind != "ids")],
)
async def test_a_large_request_holds_the_loop_for_a_few_milliseconds_at_a_time(
    kind: str, tmp_path: Path
) -> None:
    config = router_config(long_checkpoint(tmp_path), tmp_path)
    rpc, request = REQUESTS[kind]()
    data = request.SerializeToString()
    drain, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    router = asyncio.create_task(Router(config).run(drain, ready.set_result))
    address = await ready
    with process(run_worker, LOAD, config) as (_, pipe):
        await asyncio.to_thread(pipe.recv)
        pipe.send(address)
        await serving(address)
        async with grpc.aio.insecure_channel(address) as channel:
            path = f"/penstock.v1.Inference/{rpc}"
            open_call = channel.unary_stream if rpc == "Generate" else channel.unary_unary
            call = open_call(path, None, None)
            worst = []
            for _ in range(7):
                with held() as spent:
                    await ended(call(data))
                worst.append(max(spent))
    drain.set()
    await router
    print(f"{kind}: at most {[round(1e3 * each, 1) for each in worst]} ms at a time")
    assert sorted(worst)[3] < MAX_HOLD * plain_loop_s()
