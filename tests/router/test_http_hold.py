"""What a large body costs everybody: how long it holds the router's event loop at a time."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.router_hold import held, plain_loop_s
from bench.router_processes import RelayedLoad, process, router_config, run_worker, serving
from bench.router_requests import long_checkpoint
from router.router import Router

MAX_HOLD = 8.7  # times a plain loop of 20,000 turns: 10 ms where that takes 1.15
LONG = 65_000
LOAD = RelayedLoad(num_messages=1, concurrency=1, short=1, long=1, tokens_per_message=1)
MESSAGE = '{"role":"user","content":"x"},'
END = '{"role":"user","content":"x"}]}'


def filled(begin: str, part: str, end: str, num_bytes: int = 8 << 20) -> bytes:
    return (begin + part * ((num_bytes - len(begin) - len(end)) // len(part)) + end).encode()


BODIES: dict[str, Callable[[], tuple[str, bytes]]] = {
    "ids": lambda: (
        "completions",
        json.dumps({"prompt": [n % 2000 for n in range(LONG)], "max_tokens": 1}).encode(),
    ),
    "text": lambda: ("completions", json.dumps({"prompt": "The fox. " * 7_000}).encode()),
    "8 MiB of text": lambda: (
        "chat/completions",
        filled('{"messages":[{"role":"user","content":"', "x", '"}]}'),
    ),
    "8 MiB of escapes": lambda: (
        "chat/completions",
        filled('{"messages":[{"role":"user","content":"', "\\u00e9", '"}]}'),
    ),
    "8 MiB of messages": lambda: ("chat/completions", filled('{"messages":[', MESSAGE, END)),
    "8 MiB of items": lambda: ("responses", filled('{"input":[', MESSAGE, END)),
    "8 MiB of ids": lambda: ("completions", filled('{"prompt":[1', ",1", "]}")),
    "8 MiB of what is unknown": lambda: (
        "chat/completions",
        filled('{"whatever":[1', ",1", '],"messages":[' + END),
    ),
}


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[] if "MiB of me" in kind else pytest.mark.prove) for kind in BODIES],
)
async def test_a_large_body_holds_the_loop_for_a_few_milliseconds_at_a_time(
    kind: str, tmp_path: Path
) -> None:
    path, body = BODIES[kind]()
    router = Router(router_config(long_checkpoint(tmp_path), tmp_path))
    drain, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    running = asyncio.create_task(router.run(drain, ready.set_result))
    address = await ready
    with process(run_worker, LOAD, router.config) as (_, pipe):
        await asyncio.to_thread(pipe.recv)
        pipe.send(address)
        await serving(address)
        worst = []
        for _ in range(7):
            with held() as spent:
                # From a thread: what a client spends is not the router's.
                status = await asyncio.to_thread(post, router.http_address, path, body)
                assert status in (200, 400, 413)
            worst.append(max(spent))
    drain.set()
    await running
    # One beginning may be unlucky: a collection, a process that starts.
    ratio = sorted(worst)[len(worst) // 2] / plain_loop_s()
    print(f"{kind}: {1000 * sorted(worst)[3]:.1f} ms, {ratio:.1f} plain loops")
    assert ratio < MAX_HOLD


def post(address: str, path: str, body: bytes) -> int:
    """Blocks until all of the answer is there; its status."""
    import http.client

    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request("POST", f"/v1/{path}", body, {"content-type": "application/json"})
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()
