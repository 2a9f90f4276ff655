"""A process that asks a router for its status all the time: `onlooker.py ADDRESS TOKEN`. It prints
a line when it is let in; and when its standard input ends the longest answer, and the oldest report
of which it was told.
"""

import asyncio
import json
import sys
import time

from cluster.channel import open_channel
from penstock.v1 import worker_pb2


async def look(address: str, token: str) -> None:
    slowest_s = oldest_s = 0.0
    over = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    async with open_channel(address, token) as channel:
        await channel.unary(
            "penstock.v1.Cluster", "Status", worker_pb2.StatusRequest(), timeout_s=60
        )
        print("let in", flush=True)
        while not over.done():
            asked_at = time.monotonic()
            request = worker_pb2.StatusRequest()
            reply = await channel.unary("penstock.v1.Cluster", "Status", request, timeout_s=60)
            slowest_s = max(slowest_s, time.monotonic() - asked_at)
            oldest_s = max(oldest_s, *(each.report_age_seconds for each in reply.workers))
            await asyncio.wait([over], timeout=0.05)
    print(json.dumps({"status_s": slowest_s, "report_age_s": oldest_s}))


if __name__ == "__main__":
    asyncio.run(look(*sys.argv[1:]))
