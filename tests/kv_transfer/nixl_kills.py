"""Kills peers in the midst of writes by NIXL; crashes where that takes the writer along.

python -m tests.kv_transfer.nixl_kills NUM
"""

import asyncio
import random
import signal
import sys
import tempfile
from pathlib import Path

from kv_transfer.nixl.transport import NixlTransport
from tests.kv_transfer.nixl_rig import KEY, NUM_BYTES, Owner, open_pool, started, write

NUM_WRITES = 16
LATEST_S = 0.06  # a kill after the first of these: while one of them moves


async def main(num_kills: int, run_dir: Path) -> None:
    """Tells of each."""
    numbers = random.Random(0)
    pool = open_pool(run_dir)
    transport = NixlTransport(pool, host="127.0.0.1", key=KEY)
    for number in range(num_kills):
        with started(run_dir, f"owner{number}") as owner:
            await kill_while_written_to(transport, owner, numbers.uniform(0, LATEST_S))
        (run_dir / f"kv-owner{number}").unlink(missing_ok=True)
        print(number + 1, "of", num_kills, flush=True)
    transport.close()
    pool.close()


async def kill_while_written_to(transport: NixlTransport, owner: Owner, after_s: float) -> None:
    peer = await transport.connect(owner.address)
    writes = [asyncio.wrap_future(write(peer, NUM_BYTES)) for _ in range(NUM_WRITES)]
    await asyncio.sleep(after_s)
    owner.signal(signal.SIGKILL)
    async with asyncio.timeout(20):
        await asyncio.gather(*writes, return_exceptions=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(int(sys.argv[1]), Path(folder)))
