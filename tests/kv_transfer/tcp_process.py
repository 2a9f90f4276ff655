"""A worker in miniature, in a process of its own, that others write to over TCP.

Tells its address; takes another's address a line, and admits that one everywhere in epoch 1.
"""

import asyncio
import sys
from pathlib import Path

from cluster.types import Incarnation
from kv_transfer.pool import FilePool, PoolConfig
from kv_transfer.tcp_transport import TcpTransport


async def main(name: str, run_dir: Path, num_bytes: int, key: bytes) -> None:
    pool = FilePool(PoolConfig(incarnation=Incarnation(name), num_bytes=num_bytes, run_dir=run_dir))
    transport = TcpTransport(pool, host="127.0.0.1", key=key)
    print(transport.address, flush=True)
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        peer = await transport.connect(line)
        peer.admit(1, lambda spans: True)
        print("admitted", flush=True)
    transport.close()
    pool.close()


asyncio.run(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4].encode()))
