"""Clients that ask again and again while something is done to the cluster, and what became of it:
every answer is compared to that of an undisturbed run."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from penstock.aio import AsyncClient
from penstock.errors import PenstockError
from penstock.retry import RetryPolicy
from tests.workers.answers import prompt_of

NUM_STREAMS = 24
NUM_PROMPTS = 2  # of each, in turn
NUM_TOKENS = 100
NO_RETRIES = RetryPolicy(max_attempts=1)  # what is refused is seen


class Streams:
    """One task a stream. `lost` and `wrong` stay empty."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._clients = [AsyncClient(address, retries=NO_RETRIES) for address in addresses]
        self._undisturbed: dict[int, list[int]] = {}
        self._streaming: set[int] = set()  # those that have had tokens, and not all
        self._turns = [0] * NUM_STREAMS  # answers so far
        self._changed = asyncio.Condition()
        self.lost: list[str] = []
        self.wrong: list[int] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Begins with the undisturbed run, and ends when every stream has had its last answer."""
        await asyncio.gather(*map(self._run_undisturbed, range(NUM_STREAMS)))
        over = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for stream in range(NUM_STREAMS):
                tasks.create_task(self._run(stream, over))
            try:
                yield
            finally:
                over.set()
        for client in self._clients:
            await client.close()

    async def in_the_middle(self) -> None:
        """Returns when most of the streams are."""
        async with asyncio.timeout(60), self._changed:
            await self._changed.wait_for(lambda: len(self._streaming) > NUM_STREAMS // 2)

    async def each_again(self) -> None:
        """Returns when every stream has had an answer that it asked for after now."""
        turns = [done + 2 for done in self._turns]
        async with asyncio.timeout(120), self._changed:
            await self._changed.wait_for(
                lambda: all(done >= turn for done, turn in zip(self._turns, turns, strict=True))
            )

    async def _run_undisturbed(self, stream: int) -> None:
        for turn in range(NUM_PROMPTS):
            number = _number(stream, turn)
            self._undisturbed[number] = await self._ask(stream, number)

    async def _run(self, stream: int, over: asyncio.Event) -> None:
        while not over.is_set():
            number = _number(stream, self._turns[stream])
            try:
                if await self._ask(stream, number) != self._undisturbed[number]:
                    self.wrong.append(number)
            except PenstockError as error:
                self.lost.append(f"{type(error).__name__}: {error}")
                await asyncio.sleep(0.1)  # who is refused at once does not ask at once
            self._streaming.discard(stream)
            self._turns[stream] += 1
            await self._tell()

    async def _ask(self, stream: int, number: int) -> list[int]:
        client = self._clients[stream % len(self._clients)]
        options = {"temperature": 0.0, "max_tokens": NUM_TOKENS, "ignore_eos": True}
        received: list[int] = []
        answer = client.generate(token_ids=prompt_of(number, 60), timeout=90, **options)
        async with answer:
            async for chunk in answer:
                received += chunk.token_ids
                if stream not in self._streaming:
                    self._streaming.add(stream)
                    await self._tell()
        return received

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _number(stream: int, turn: int) -> int:
    return stream * NUM_PROMPTS + turn % NUM_PROMPTS
