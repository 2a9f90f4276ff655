"""Two answers at once in one event loop."""

import asyncio
import os

from penstock import AsyncClient

ADDRESS = os.environ.get("PENSTOCK_ADDRESS", "127.0.0.1:50051")


async def ask(client: AsyncClient, question: str) -> str:
    text = ""
    async with client.generate(messages=[("user", question)]) as stream:
        async for chunk in stream:
            text += chunk.text
    return text


async def main() -> None:
    async with AsyncClient(ADDRESS) as client:
        answers = await asyncio.gather(
            ask(client, "What does len do?"), ask(client, "What does sorted do?")
        )
    print(*answers, sep="\n")


asyncio.run(main())
