"""Clients on one machine that ask again and again, as a program. It says 'running' when each has
had an answer, 'again' for each line on stdin as soon as each has had a whole answer that it asked
for since, and what became of all when stdin ends. Arguments: addresses, for the clients in turn."""

import asyncio
import json
import sys
from collections import Counter

from penstock import AsyncClient, PenstockError
from penstock.errors import StreamInterruptedError
from tests.workers.answers import prompt_of

NUM_CLIENTS, NUM_PROMPTS, NUM_TOKENS = 24, 8, 60


class Load:
    def __init__(self, addresses: list[str]) -> None:
        self._clients = [AsyncClient(address) for address in addresses]
        self._expected: dict[int, list[int]] = {}
        self._answers = [0] * NUM_CLIENTS
        self._changed = asyncio.Condition()
        self._over = False
        self.became: Counter[str] = Counter()

    async def run(self, lines: asyncio.StreamReader) -> None:
        for number in range(NUM_PROMPTS):
            received: list[int] = []
            await self._ask(0, number, received)
            self._expected[number] = received
        async with asyncio.TaskGroup() as tasks:
            for client in range(NUM_CLIENTS):
                tasks.create_task(self._keep_asking(client))
            await self._each_has(1)
            print("running", flush=True)
            while await lines.readline():
                await self._each_has(2)
                print("again", flush=True)
            self._over = True
        for each in self._clients:
            await each.close()

    async def _each_has(self, more: int) -> None:
        wanted = [number + more for number in self._answers]
        async with self._changed:
            await self._changed.wait_for(
                lambda: all(has >= want for has, want in zip(self._answers, wanted, strict=True))
            )

    async def _keep_asking(self, client: int) -> None:
        while not self._over:
            self.became[await self._answer(client)] += 1
            async with self._changed:
                self._changed.notify_all()

    async def _answer(self, client: int) -> str:
        number = (client + self._answers[client]) % NUM_PROMPTS
        received: list[int] = []
        try:
            await self._ask(client, number, received)
        except StreamInterruptedError as error:
            right = self._expected[number][: len(received)] == received
            told = error.tokens_emitted == len(received) > 0
            return "interrupted" if right and told else f"miscounted: {error}"
        except PenstockError as error:
            return f"lost: {type(error).__name__}: {error}"
        self._answers[client] += 1
        return "right" if received == self._expected[number] else "wrong"

    async def _ask(self, client: int, number: int, received: list[int]) -> None:
        options = {"temperature": 0.0, "max_tokens": NUM_TOKENS, "ignore_eos": True}
        which = self._clients[client % len(self._clients)]
        answer = which.generate(token_ids=prompt_of(number, 60), timeout=180, **options)
        async with answer:
            async for chunk in answer:
                received += chunk.token_ids


async def main() -> None:
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    load = Load(sys.argv[1:])
    await load.run(lines)
    print(json.dumps(load.became), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
