"""The time of a drain is over and calls are still open: whoever waits goes on elsewhere."""

import asyncio
from pathlib import Path

import pytest

from cluster.channel import open_channel
from cluster.errors import Draining, StreamInterrupted
from tests.router.cluster_of_fakes import Answer
from tests.router.fake_worker import TOKEN
from tests.workers.answers import expected, greedy, prompt_of
from tests.workers.decoding import continuation, decode
from tests.workers.local_cluster import LocalCluster, stuck

PROMPT = prompt_of(3, 60)
SHORT = {"drain_s": 0.05}


async def test_an_answer_goes_on_after_the_tokens_that_a_drained_worker_has_sent(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with LocalCluster(checkpoint, tmp_path, decode=[SHORT, SHORT], prefill=[]) as cluster:
        answer = Answer()
        task = asyncio.create_task(cluster.generate(greedy(PROMPT, 200), answer=answer))
        await cluster.until(lambda: len(answer.messages) > 3)
        name = answer.messages[0].accepted.decode_worker
        busy = next(running for running in cluster.decode if running.name == name)
        busy.gate.close()
        await stuck(busy)
        busy.drain.set()
        await task
        busy.gate.open()
        assert answer.token_ids == expected(PROMPT, 200)
        await busy.task
        cluster.decode.remove(busy)


async def test_the_caller_of_a_drained_decode_worker_is_told_how_many_tokens_it_sent(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with LocalCluster(checkpoint, tmp_path, decode=[SHORT], prefill=[]) as cluster:
        [worker] = cluster.decode
        request = continuation([], prompt=PROMPT, max_tokens=200)
        received: list[int] = []
        async with (
            open_channel(worker.address, TOKEN) as channel,
            channel.stream("penstock.v1.Decode", "Generate", request, timeout_s=30) as stream,
        ):

            async def read(num_tokens: int) -> None:
                while len(received) < num_tokens:
                    message = await stream.receive()
                    received.extend(token for delta in message.deltas for token in delta.token_ids)

            await read(5)
            worker.gate.close()
            await stuck(worker)
            worker.drain.set()
            with pytest.raises(StreamInterrupted) as caught:
                await read(201)
        worker.gate.open()
        assert caught.value.metadata["tokens_emitted"] == str(len(received))
        await worker.task
        cluster.decode.remove(worker)


async def test_what_an_earlier_worker_sent_is_not_a_drained_ones_to_count(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with LocalCluster(checkpoint, tmp_path, decode=[SHORT], prefill=[]) as cluster:
        [worker] = cluster.decode
        worker.gate.close()
        request = continuation(expected(PROMPT, 4), prompt=PROMPT, max_tokens=20)
        task = asyncio.create_task(decode(worker, request))
        await stuck(worker)
        worker.drain.set()
        with pytest.raises(Draining) as caught:
            await task
        worker.gate.open()
        assert caught.value.retry_after_s > 0
        await worker.task
        cluster.decode.remove(worker)


async def test_a_prompt_is_computed_here_when_a_drained_prefill_worker_stops(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with LocalCluster(
        checkpoint, tmp_path, disaggregate="always", prefill=[SHORT]
    ) as cluster:
        [prefill] = cluster.prefill
        prefill.gate.close()
        task = asyncio.create_task(cluster.generate(greedy(PROMPT, 20)))
        await stuck(prefill)
        prefill.drain.set()
        answer = await task
        prefill.gate.open()
        assert answer.token_ids == expected(PROMPT, 20)
        assert answer.messages[-1].finished.timeline.recomputes == 1
        await prefill.task
        cluster.prefill.remove(prefill)
