"""What TLS costs between processes: a connection, a call, KV by TCP; plain and under TLS in turns.

    python -m bench.tls [--rounds 20]

Both ends are in this one process, the receiver of KV on a thread of its own; medians.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from cluster.addresses import outward
from cluster.authority import PLAIN, Credentials, create_authority
from cluster.channel import open_channel
from cluster.door import door_service
from cluster.proof import Doorkeeper
from cluster.rpc import Call, Server, service_handlers
from cluster.types import Incarnation
from kv_transfer.geometry import SpanPairs
from kv_transfer.pool import FilePool, PoolConfig
from kv_transfer.tcp.transport import TcpPeer, TcpTransport
from penstock.v1 import inference_pb2

TOKEN = "the-token-of-a-bench"
KV_BYTES = 64 << 20
NUM_CALLS = 200
SERVICE = "penstock.v1.Inference"


async def tokenize(request: Any, call: Call) -> inference_pb2.TokenizeResponse:
    return inference_pb2.TokenizeResponse(token_ids=[1])


async def calls(credentials: Credentials, host: str) -> tuple[float, float]:
    """Seconds of the first call, which connects, and of one among many."""
    door = Doorkeeper(TOKEN)
    services = [
        service_handlers(SERVICE, {"Tokenize": tokenize}, door=door),
        door_service(door),
    ]
    request = inference_pb2.TokenizeRequest(text="a text")
    async with (
        Server(services, address=f"{host}:0", credentials=credentials) as server,
        open_channel(server.address, TOKEN, credentials=credentials) as channel,
    ):

        async def ask() -> None:
            await channel.unary(SERVICE, "Tokenize", request, timeout_s=10)

        first_s = await timed(ask)
        return first_s, statistics.median([await timed(ask) for _ in range(NUM_CALLS)])


async def kv(credentials: Credentials, host: str) -> float:
    """Bytes a second of one large write, digested."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        pools = [
            FilePool(
                PoolConfig(incarnation=Incarnation(name), num_bytes=KV_BYTES, run_dir=Path(folder))
            )
            for name in ("a", "b")
        ]
        ours, theirs = (
            TcpTransport(pool, host=host, key=b"key", credentials=credentials, num_streams=4)
            for pool in pools
        )
        pools[0].memory[:] = np.random.default_rng(0).integers(0, 255, KV_BYTES, dtype=np.uint8)
        (await theirs.connect(ours.address)).admit(1, lambda spans: True)
        peer = await ours.connect(theirs.address)
        await _write(peer)  # touches memory for the first time
        seconds = await timed(lambda: _write(peer))
        for end in (ours, theirs):
            end.close()
        for pool in pools:
            pool.close()
    return KV_BYTES / seconds


async def _write(peer: TcpPeer) -> None:
    zero = np.zeros(1, dtype=np.int64)
    pairs = SpanPairs(source=zero, destination=zero, sizes=np.array([KV_BYTES]))
    landed = peer.write(pairs, epoch=1, digest=True, may_start=lambda: True)
    await asyncio.wrap_future(landed)


async def timed(act: Callable[[], Awaitable[None]]) -> float:
    begin = time.perf_counter()
    await act()
    return time.perf_counter() - begin


async def main(rounds: int) -> None:
    host = (*outward(), "localhost")[0]
    begin = time.perf_counter()
    ways = {"plain": PLAIN, "TLS": Credentials(create_authority())}
    ways["TLS"].at(f"{host}:0")
    print(f"an authority drawn, and a certificate: {1e3 * (time.perf_counter() - begin):.0f} ms")
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, credentials in ways.items():
            found[name].append((*await calls(credentials, host), await kv(credentials, host)))
    for name, taken in found.items():
        first_s, call_s, speed = map(statistics.median, zip(*taken, strict=True))
        print(
            f"{name:5}  first call {1e3 * first_s:.1f} ms · a call {1e6 * call_s:.0f} µs ·"
            f" KV {speed / 2**20:.0f} MiB/s"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    asyncio.run(main(parser.parse_args().rounds))
