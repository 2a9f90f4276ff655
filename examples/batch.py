"""Many prompts: a few in flight at a time, each answer kept as soon as it is there.

A seed of its own makes every answer repeatable. With a `service_class` of the routing policy that
is light the work stays behind requests that somebody waits for. What the cluster refuses because it
is full is sent again by the client; what fails for good does not end the others.
"""

import asyncio
import json
import os
from typing import Any

from penstock import AsyncClient, PenstockError, RetryPolicy

ADDRESS = os.environ.get("PENSTOCK_ADDRESS", "127.0.0.1:50051")
IN_FLIGHT = 4
NAMES = ("abs", "all", "any", "bin", "divmod", "len", "max", "min", "round", "sorted", "sum", "zip")


async def answer(client: AsyncClient, number: int, name: str) -> dict[str, Any]:
    question = [("user", f"What does {name} do?")]
    try:
        stream = client.generate(messages=question, max_tokens=64, seed=number, timeout=300)
        result = await stream.result()
    except PenstockError as error:
        return {"number": number, "error": error.reason, "message": error.message}
    return {"number": number, "name": name, "text": result.text}


async def main() -> None:
    work = iter(enumerate(NAMES))
    patient = RetryPolicy(max_attempts=10, max_backoff=30.0)

    async def take(client: AsyncClient) -> None:
        for number, name in work:  # whoever is free takes the next
            print(json.dumps(await answer(client, number, name)), flush=True)

    async with AsyncClient(ADDRESS, retries=patient) as client, asyncio.TaskGroup() as tasks:
        for _ in range(IN_FLIGHT):
            tasks.create_task(take(client))


asyncio.run(main())
