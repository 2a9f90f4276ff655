"""A cluster with a planner as its operator sees it, and clients that ask it again and again."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.aio import AsyncClient
from penstock.errors import PenstockError
from penstock.retry import RetryPolicy
from tests.deploy.ray_operator import Operator
from tests.workers.answers import prompt_of

# Whoever is not needed for half a minute goes.
HASTY = {"interval": "1s", "window": "20s", "hold": "5s", "calm": "10s", "leave": "60s"}
NUM_TOKENS = 40
NUM_PROMPTS = 40
LOOK_S = 0.5
RISE_S = 40.0


def pool(name: str, role: str, least: int, most: int) -> dict[str, Any]:
    bounds = {"minWorkers": least, "maxWorkers": most}
    return {"name": name, "role": role, "kvPool": "16MiB", **bounds}


class Load:
    """Clients that ask again and again. What failed, and what was not the answer that came first
    to the same prompt, is kept."""

    def __init__(self, address: str) -> None:
        self._client = AsyncClient(address, retries=RetryPolicy(max_attempts=1))
        self._answers: dict[int, list[int]] = {}
        self.num_answers = 0
        self.failed: list[str] = []
        self.wrong: list[int] = []

    @asynccontextmanager
    async def of(self, num_clients: int, *, pause_s: float = 0.0) -> AsyncIterator[None]:
        over = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for client in range(num_clients):
                tasks.create_task(self._ask_on(client, pause_s, over))
            try:
                yield
            finally:
                over.set()

    @asynccontextmanager
    async def rising(self) -> AsyncIterator[None]:
        """More and more clients: how many are too many for two workers is the machine's to say."""
        async with asyncio.TaskGroup() as tasks:
            rise = tasks.create_task(self._rise())
            try:
                yield
            finally:
                rise.cancel()

    async def _rise(self) -> None:
        async with AsyncExitStack() as stack:
            for num_clients in (24, 24, 48, 96):
                await stack.enter_async_context(self.of(num_clients))
                await asyncio.sleep(RISE_S)
            await asyncio.Event().wait()

    async def _ask_on(self, client: int, pause_s: float, over: asyncio.Event) -> None:
        turn = client
        while not over.is_set():
            await self.ask(turn % NUM_PROMPTS)
            turn += 7
            try:
                async with asyncio.timeout(pause_s):
                    await over.wait()
            except TimeoutError:
                continue

    async def ask(self, number: int) -> None:
        tokens: list[int] = []
        options = {"temperature": 0.0, "max_tokens": NUM_TOKENS, "ignore_eos": True}
        prompt = prompt_of(number, 500)
        try:
            async with self._client.generate(token_ids=prompt, timeout=240, **options) as answer:
                async for chunk in answer:
                    tokens += chunk.token_ids
        except PenstockError as error:
            self.failed.append(f"{type(error).__name__}: {error}")
            return
        self.num_answers += 1
        if tokens != self._answers.setdefault(number, tokens):
            self.wrong.append(number)

    async def close(self) -> None:
        await self._client.close()


class Planned:
    """A cluster that is up, as its operator sees it."""

    def __init__(self, operator: Operator, file: Path) -> None:
        self._operator = operator
        self._file = file

    def sizes(self) -> tuple[int, int]:
        """Prefill and decode workers for which something is set aside, and that serve."""
        ended = self._operator.penstock("status", "--json")
        workers = json.loads(ended.stdout).get("workers", [])
        serving = [each["member"]["role"] for each in workers if each.get("serving")]
        return serving.count("ROLE_PREFILL"), serving.count("ROLE_DECODE")

    def status(self) -> dict[str, Any]:
        ended = self._operator.penstock("planner", "status", "-f", self._file, "--json")
        assert ended.stdout, ended.stderr
        said: dict[str, Any] = json.loads(ended.stdout)
        return said

    async def until(self, holds: Callable[[], bool], what: str, within_s: float) -> None:
        ends_at = time.monotonic() + within_s
        while not await asyncio.to_thread(holds):
            if time.monotonic() > ends_at:
                pytest.fail(f"not within {within_s:g} s: {what}; {self.status()}")
            await asyncio.sleep(LOOK_S)
