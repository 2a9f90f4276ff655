"""All decode workers die at once: whoever asked outlives it, those in the middle of their answer,
too, with the tokens that would have come.
"""

import asyncio
import os
import signal
from contextlib import nullcontext
from pathlib import Path

import pytest

from deploy.launcher import LocalCluster, Supervision
from deploy.plan import ClusterPlan
from penstock.aio import AsyncClient
from tests.burnt_cores import burnt_cores
from tests.router.checkpoint import write_checkpoint
from tests.workers.answers import expected, prompt_of

SUPERVISION = Supervision(first_backoff_s=0.1)
NUM_TOKENS = 24


class Load:
    """So many requests, `num_at_once` at a time."""

    def __init__(self, client: AsyncClient, num: int, num_at_once: int) -> None:
        self._client = client
        self._numbers = iter(range(num))
        self._num_at_once = num_at_once
        self.num_whole = 0
        self.wrong: list[str] = []
        self._changed = asyncio.Condition()

    async def run(self) -> None:
        await asyncio.gather(*(self._ask_on() for _ in range(self._num_at_once)))

    async def until_whole(self, num: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.num_whole >= num)

    async def _ask_on(self) -> None:
        for number in self._numbers:
            prompt = prompt_of(number, 40)
            try:
                answer = await self._client.generate(
                    token_ids=prompt,
                    temperature=0.0,
                    max_tokens=NUM_TOKENS,
                    ignore_eos=True,
                    timeout=60,
                ).result()
            except Exception as error:
                self.wrong.append(f"{number}: {error!r}")
            else:
                if list(answer.token_ids) != expected(prompt, NUM_TOKENS):
                    self.wrong.append(f"{number}: other tokens")
                async with self._changed:
                    self.num_whole += 1
                    self._changed.notify_all()


@pytest.mark.slow
@pytest.mark.timeout(290)
@pytest.mark.parametrize(
    ("num", "is_busy"),
    [
        (150, False),
        pytest.param(600, False, marks=pytest.mark.prove),
        pytest.param(600, True, marks=[pytest.mark.prove, pytest.mark.alone]),
    ],
)
async def test_no_request_is_lost_with_all_decode_workers(
    tmp_path: Path, num: int, is_busy: bool
) -> None:
    plan = ClusterPlan(
        checkpoint=write_checkpoint(tmp_path),
        num_decode=2,
        num_prefill=2,
        num_blocks=512,
        drain_s=5.0,
        worker={"engine": "echo"},
    )
    async with (
        LocalCluster(plan, supervision=SUPERVISION) as cluster,
        AsyncClient(cluster.address) as client,
    ):
        with burnt_cores(at_most_s=250) if is_busy else nullcontext():
            load = Load(client, num, num_at_once=24)
            running = asyncio.create_task(load.run())
            await load.until_whole(num // 4)
            for name in ("decode-0", "decode-1"):
                os.kill(cluster.children[name].pid, signal.SIGKILL)
            await running
        assert load.wrong == []
        assert load.num_whole == num
