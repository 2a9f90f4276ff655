"""A worker in miniature, in a process of its own, that others write to over TCP.

Tells its address; takes another's address a line, and admits that one everywhere in epoch 1.
After "write" comes the address of one that it writes to, more than sockets hold.
"""

import asyncio
import sys
from pathlib import Path

from cluster.errors import TransferFailed
from cluster.types import Incarnation
from kv_transfer.pool import FilePool, PoolConfig
from kv_transfer.tcp import link as tcp_link
from kv_transfer.tcp.transport import TcpTransport
from tests.kv_transfer.tcp_rig import landed, write

STALL_S = 1.5  # of its own writes


async def main(name: str, run_dir: Path, num_bytes: int, key: bytes) -> None:
    pool = FilePool(PoolConfig(incarnation=Incarnation(name), num_bytes=num_bytes, run_dir=run_dir))
    transport = TcpTransport(pool, host="127.0.0.1", key=key)
    print(transport.address, flush=True)
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        if line.startswith("write "):
            await write_to(transport, line.removeprefix("write "), num_bytes)
            continue
        peer = await transport.connect(line)
        peer.admit(1, lambda spans: True)
        print("admitted", flush=True)
    transport.close()
    pool.close()


async def write_to(transport: TcpTransport, address: str, num_bytes: int) -> None:
    tcp_link.STALL_S = STALL_S
    peer = await transport.connect(address)
    writes = [write(peer, (0, 0, num_bytes)) for _ in range(6)]
    print("writing", flush=True)
    try:
        for one in writes:
            await landed(one, within_s=60)
    except TransferFailed as error:
        print(f"failed: {error}", flush=True)
    else:
        print("landed", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4].encode()))
