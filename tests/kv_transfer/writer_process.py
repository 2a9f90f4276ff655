"""A prefill worker in miniature: a process of its own that writes what it is granted.

Takes a grant as a line of JSON, then `open` (the gate), `stop`, `fence`; tells `ready`, `held`,
`written` and `closed`, each as a line of JSON.
"""

import asyncio
import json
import sys
from pathlib import Path

from cluster.errors import TransferFailed
from cluster.types import Grant, Incarnation, KvLayout
from kv_transfer.outgoing import OutgoingTransfer
from kv_transfer.pool import FilePool, PoolConfig
from kv_transfer.shared_memory_transport import SharedMemoryTransport
from tests.kv_transfer.faulty_transport import FaultyTransport

NUM_TOKENS = 64
LAYOUT = KvLayout(num_layers=2, num_blocks=16, block_size=8, num_kv_heads=1, head_dim=16)
BLOCKS = [3, 1, 4, 15, 9, 2, 6, 5]


def tell(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


async def main(run_dir: Path, is_gated: bool) -> None:
    config = PoolConfig(
        incarnation=Incarnation("writer"), num_bytes=LAYOUT.pool_bytes, run_dir=run_dir
    )
    pool = FilePool(config)
    transport = FaultyTransport(SharedMemoryTransport(pool))
    pool.memory[:] = 7
    if is_gated:
        transport.close_gate()
    tell("ready", address=transport.address)
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)

    message = json.loads(await lines.readline())
    outgoing = OutgoingTransfer(layout=LAYOUT, blocks=BLOCKS, num_tokens=NUM_TOKENS)
    outgoing.computed_all(NUM_TOKENS)
    grant = Grant(**message["grant"])
    peer = await transport.connect(message["address"])
    outgoing.grant(grant, peer, KvLayout(**{**message["layout"], "windows": ()}))
    async with asyncio.TaskGroup() as group:
        group.create_task(follow(lines, transport, outgoing))
        group.create_task(report(transport, outgoing))
    transport.close()
    pool.close()


async def follow(
    lines: asyncio.StreamReader, transport: FaultyTransport, outgoing: OutgoingTransfer
) -> None:
    while line := (await lines.readline()).decode().strip():
        if line == "open":
            transport.open_gate()
        elif line == "stop":
            outgoing.stop("told to")


async def report(transport: FaultyTransport, outgoing: OutgoingTransfer) -> None:
    if not transport.is_open:
        await asyncio.to_thread(transport.held.wait)
        tell("held")
    try:
        written = await outgoing.landed()
    except TransferFailed as error:
        tell("closed", reason=str(error))
    else:
        digests = [[one.layer, one.start, one.stop, one.digest] for one in written.digests]
        tell("written", digests=digests, num_bytes=written.num_bytes)


asyncio.run(main(Path(sys.argv[1]), sys.argv[2] == "gated"))
