"""A killed router is started again by the supervisor and knows what the workers hold."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from penstock import errors
from penstock.aio import AsyncClient
from penstock.answer import Answer
from tests.processes.echo_cluster import running, until
from tests.workers.answers import prompt_of

pytestmark = pytest.mark.prove


async def answered(client: AsyncClient, prompt: list[int]) -> Answer:
    """Asked again while nobody listens."""
    async with asyncio.timeout(20):
        while True:
            try:
                options = {"temperature": 0.0, "max_tokens": 2, "ignore_eos": True}
                return await client.generate(token_ids=prompt, **options).result()
            except errors.PenstockError:
                await asyncio.sleep(0.02)


async def test_each_prompt_goes_where_it_is_cached_after_a_router_was_killed(
    tmp_path: Path,
) -> None:
    prompts = [prompt_of(number, 160) for number in range(6)]
    async with running(tmp_path, num_decode=2, num_prefill=0, disaggregate="never") as (
        cluster,
        client,
    ):
        # At once, so that they lie on both.
        first = await asyncio.gather(*(answered(client, prompt) for prompt in prompts))
        before = [answer.accepted.decode_worker for answer in first]
        assert len(set(before)) == 2, "all lie on one worker, so that nothing is shown"
        killed = cluster.children["router"].pid
        os.kill(killed, signal.SIGKILL)

        async def is_another() -> bool:
            return cluster.children["router"].pid not in (killed, None)

        await until(is_another, 20.0)
        answers = [await answered(client, prompt) for prompt in prompts]
        assert [answer.accepted.decode_worker for answer in answers] == before
        assert all(answer.accepted.cached_tokens >= 144 for answer in answers)
