"""Real processes under signals: what the operator sees, and what the client gets.

Echo engines: their answers depend on every token of the context, and a slot of the KV pool
that does not hold what it should ends the step with an error.
"""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from deploy.launcher import LocalCluster
from penstock import errors
from tests.processes.echo_cluster import ask, running, status, until
from tests.workers.answers import expected, prompt_of

pytestmark = pytest.mark.slow


def stop(cluster: LocalCluster, name: str) -> None:
    os.kill(cluster.children[name].pid, signal.SIGSTOP)


def go_on(cluster: LocalCluster, name: str) -> None:
    os.kill(cluster.children[name].pid, signal.SIGCONT)


@pytest.mark.alone
async def test_a_stopped_worker_is_seen_within_two_seconds_and_gets_nothing(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, num_decode=2) as (cluster, client):
        stop(cluster, "decode-1")

        async def is_seen() -> bool:
            return not (await status(cluster))["decode-1"].serving

        assert await until(is_seen, 5.0) < 2.0
        assert (await status(cluster))["decode-1"].reason
        for number in range(6):
            prompt = prompt_of(number, 40)
            assert await ask(client, prompt, 10) == expected(prompt, 10)
        assert (await status(cluster))["decode-1"].requests_in_flight == 0
        go_on(cluster, "decode-1")

        async def is_back() -> bool:
            return (await status(cluster))["decode-1"].serving

        await until(is_back, 5.0)


async def test_a_stopped_prefill_worker_costs_a_lease_and_no_answer(tmp_path: Path) -> None:
    async with running(tmp_path) as (cluster, client):
        prompts = [prompt_of(number, 60 + number) for number in range(12)]
        tasks = [asyncio.create_task(ask(client, prompt, 20)) for prompt in prompts]
        stop(cluster, "prefill-0")
        answers = await asyncio.gather(*tasks)
        assert answers == [expected(prompt, 20) for prompt in prompts]
        go_on(cluster, "prefill-0")

        async def is_all_free() -> bool:
            loads = [worker.load for worker in (await status(cluster)).values()]
            return all(
                load.num_free_blocks == load.num_blocks and not load.num_quarantined_blocks
                for load in loads
            )

        await until(is_all_free, 10.0)
        prompt = prompt_of(77, 50)
        assert await ask(client, prompt, 20) == expected(prompt, 20)


async def test_a_killed_prefill_worker_costs_no_answer_and_comes_back(tmp_path: Path) -> None:
    async with running(tmp_path) as (cluster, client):
        prompts = [prompt_of(number, 60 + number) for number in range(12)]
        tasks = [asyncio.create_task(ask(client, prompt, 20)) for prompt in prompts]
        os.kill(cluster.children["prefill-0"].pid, signal.SIGKILL)
        assert await asyncio.gather(*tasks) == [expected(prompt, 20) for prompt in prompts]

        async def is_back() -> bool:
            workers = await status(cluster)
            return "prefill-0" in workers and workers["prefill-0"].serving

        await until(is_back, 20.0)
        answer = await client.generate(
            token_ids=prompt_of(5, 50), temperature=0.0, max_tokens=4, ignore_eos=True
        ).result()
        assert answer.accepted.prefill_worker == "prefill-0"
        assert answer.timeline.recomputes == 0


@pytest.mark.parametrize(
    "blow", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.prove)]
)
async def test_an_answer_goes_on_elsewhere_when_its_decode_worker_falls(
    tmp_path: Path, blow: signal.Signals
) -> None:
    async with running(tmp_path, num_decode=2) as (cluster, client):
        received: list[int] = []
        options = {"temperature": 0.0, "max_tokens": 300, "ignore_eos": True}
        async with client.generate(token_ids=prompt_of(1, 40), **options) as stream:
            async for chunk in stream:
                if not received:
                    assert stream.accepted is not None
                    busy = stream.accepted.decode_worker
                    os.kill(cluster.children[busy].pid, blow)
                received.extend(chunk.token_ids)
            answer = await stream.result()
        assert received == expected(prompt_of(1, 40), 300)
        assert answer.usage.completion_tokens == 300
        if blow is signal.SIGSTOP:
            go_on(cluster, busy)


@pytest.mark.parametrize("return_s", [0.0, 30.0], ids=["not waited for", "waited for"])
async def test_a_decode_worker_killed_half_way_is_told_with_the_number_of_tokens_or_waited_for(
    tmp_path: Path, return_s: float
) -> None:
    async with running(tmp_path, return_s=return_s) as (cluster, client):
        received: list[int] = []
        pid = cluster.children["decode-0"].pid

        async def read_and_kill() -> None:
            options = {"temperature": 0.0, "max_tokens": 400, "ignore_eos": True}
            async with client.generate(token_ids=prompt_of(1, 40), **options) as stream:
                async for chunk in stream:
                    received.extend(chunk.token_ids)
                    if len(received) == 6:
                        os.kill(pid, signal.SIGKILL)

        if return_s:
            await read_and_kill()
            assert received == expected(prompt_of(1, 40), 400)
            return
        with pytest.raises(errors.StreamInterruptedError) as caught:
            await read_and_kill()
        assert caught.value.tokens_emitted >= len(received)
        assert received == expected(prompt_of(1, 40), len(received))
