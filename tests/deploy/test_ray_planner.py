"""A planner on a real Ray: pools grow under load, shrink again, go to nothing and come back, and no
request fails of it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.aio import AsyncClient
from penstock.errors import PenstockError
from penstock.retry import RetryPolicy
from tests.deploy.ray_operator import UP, Operator, an_operator, left_of
from tests.workers.answers import prompt_of

pytestmark = [pytest.mark.slow, pytest.mark.prove, pytest.mark.alone, pytest.mark.timeout(900)]

MACHINES: list[dict[str, Any]] = [{"num_cpus": 4}, {"num_cpus": 4}]
# Whoever is not needed for half a minute goes.
HASTY = {"interval": "1s", "window": "20s", "hold": "5s", "calm": "10s", "leave": "60s"}
NUM_TOKENS = 40
NUM_PROMPTS = 40
LOOK_S = 0.5


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


async def test_one_and_one_become_two_and_two_and_one_and_one_again(tmp_path: Path) -> None:
    async with an_operator(tmp_path, MACHINES) as operator:
        pools = [pool("prompts", "prefill", 1, 2), pool("answers", "decode", 1, 2)]
        file = operator.write(pools=pools, planner=HASTY)
        said = operator.up(file)
        assert set(said["processes"]) == {"router-0", "prompts-0", "answers-0", "planner"}
        planned, load = Planned(operator, file), Load(said["routers"][0])
        async with load.of(24):
            await planned.until(lambda: planned.sizes() == (2, 2), "2+2 serve", 240)
            grown = await asyncio.to_thread(operator.penstock, *UP, file)
            assert "Nothing is to be changed." in grown.stderr
        async with load.of(2, pause_s=0.5):
            await planned.until(lambda: planned.status()["now"] == "1+1", "1+1", 300)
            await planned.until(lambda: not planned.status()["leaving"], "all released", 60)
            assert planned.sizes() == (1, 1)
        await load.close()
        status = planned.status()
        print(load.num_answers, "answers;", *(each["text"] for each in status["past"]), sep="\n")
        assert load.num_answers > 50
        assert (load.failed, load.wrong) == ([], [])
        assert operator.penstock("down").returncode == 0
        assert left_of(operator.called("lab")) == []


async def test_to_nothing_and_back_for_a_request_that_waits(tmp_path: Path) -> None:
    async with an_operator(tmp_path, MACHINES) as operator:
        settings = {**HASTY, "window": "10s", "calm": "0s"}
        file = operator.write(pools=[pool("answers", "decode", 0, 1)], planner=settings)
        said = operator.up(file)
        assert set(said["processes"]) == {"router-0", "planner"}
        watched = operator.penstock("planner", "watch", "-f", file, "--once")
        assert "0+0 -> 0+0: Nothing came lately." in watched.stderr, watched.stderr
        planned, load = Planned(operator, file), Load(said["routers"][0])
        for _ in range(2):
            await load.ask(0)
            assert (load.failed, load.wrong) == ([], [])
            assert planned.sizes() == (0, 1)

            def is_cold() -> bool:
                status = planned.status()
                return status["now"] == "0+0" and not status["leaving"]

            await planned.until(is_cold, "nobody is there", 120)
        await load.close()
        assert load.num_answers == 2
        placed = [each["text"] for each in planned.status()["past"] if "placed" in each["text"]]
        assert len(placed) == 2
        assert operator.penstock("down").returncode == 0
        assert left_of(operator.called("lab")) == []
