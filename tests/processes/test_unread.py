"""Clients that ask for much and read nothing: they hold up nobody, and not for ever."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from deploy.launcher import LocalCluster
from deploy.plan import ClusterPlan
from penstock.aio import AsyncClient
from penstock.v1 import inference_pb2 as pb
from penstock.v1 import inference_pb2_grpc
from tests.processes.echo_cluster import NO_KILLING, ask, status, until
from tests.router.checkpoint import write_checkpoint
from tests.router.cluster_of_fakes import failure
from tests.workers.answers import expected, prompt_of

pytestmark = pytest.mark.slow
LETTERS = 1500  # of a token: what a window of gRPC holds is soon full
NUM_CHOICES, NUM_TOKENS = 16, 400


@asynccontextmanager
async def running(folder: Path, **router: Any) -> AsyncIterator[LocalCluster]:
    plan = ClusterPlan(
        checkpoint=_with_long_tokens(write_checkpoint(folder)),
        num_decode=2,
        num_prefill=2,
        num_blocks=256,
        drain_s=5.0,
        router=router,
        worker={"engine": "echo"},
    )
    async with LocalCluster(plan, supervision=NO_KILLING) as cluster:
        yield cluster


def _with_long_tokens(checkpoint: Path) -> Path:
    path = checkpoint / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {
        letter * LETTERS if len(letter) == 1 else letter: number
        for letter, number in vocabulary.items()
    }
    path.write_text(json.dumps(tokenizer))
    return checkpoint


def greedy_family(number: int) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=prompt_of(number, 40)),
        sampling=pb.SamplingParams(temperature=1.0, seed=number),
        stop=pb.LengthAndStop(max_tokens=NUM_TOKENS, ignore_eos=True),
        n=NUM_CHOICES,
    )


@pytest.mark.prove
async def test_four_unread_streams_of_sixteen_answers_hold_up_nobody(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster, grpc.aio.insecure_channel(cluster.address) as channel:
        stub: Any = inference_pb2_grpc.InferenceStub(channel)
        unread = [stub.Generate(greedy_family(i), timeout=300) for i in range(4)]
        firsts = [await call.read() for call in unread]
        await until(stands_still(cluster), 60.0)
        client = AsyncClient(cluster.address)
        prompts = [prompt_of(number, 30 + number) for number in range(10, 46)]
        async with asyncio.timeout(60):
            answers = await asyncio.gather(*(ask(client, prompt, 20) for prompt in prompts))
        assert answers == [expected(prompt, 20) for prompt in prompts]
        await client.close()
        messages = [firsts[0]]
        await read_to_its_end(unread[0], messages)
        ids = tokens_by_choice(messages)
        assert all(len(tokens) == NUM_TOKENS for tokens in ids)
        for choice in (0, 7, 15):
            alone = expected(prompt_of(0, 40), 60, seed=0, temperature=1.0, choice=choice)
            assert ids[choice][:60] == alone
        for call in unread:
            call.cancel()


def stands_still(cluster: LocalCluster) -> Callable[[], Awaitable[bool]]:
    """Whether nothing has been computed for half a second: nobody reads what there is."""
    seen: list[tuple[float, float]] = []

    async def look() -> bool:
        loads = [worker.load for worker in (await status(cluster)).values()]
        computed, now = sum(load.counters["computed_tokens"] for load in loads), time.monotonic()
        if not seen or seen[-1][0] != computed:
            seen.append((computed, now))
        return computed > 0 and now - seen[-1][1] > 0.5

    return look


async def read_to_its_end(call: Any, messages: list[pb.GenerateResponse]) -> None:
    while (message := await call.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
        messages.append(message)


def tokens_by_choice(messages: list[pb.GenerateResponse]) -> list[list[int]]:
    ids: list[list[int]] = [[] for _ in range(NUM_CHOICES)]
    for delta in (delta for message in messages for delta in message.deltas):
        ids[delta.choice].extend(delta.token_ids)
    return ids


async def test_a_stream_that_nobody_reads_ends_and_says_how_far_it_came(tmp_path: Path) -> None:
    async with (
        running(tmp_path, unread_s=1.5) as cluster,
        grpc.aio.insecure_channel(cluster.address) as channel,
    ):
        stub: Any = inference_pb2_grpc.InferenceStub(channel)
        call = stub.Generate(greedy_family(1), timeout=300)
        client = AsyncClient(cluster.address)

        async def is_free() -> bool:
            workers = (await status(cluster)).values()
            return sum(worker.requests_in_flight for worker in workers) == 0

        async def is_taken() -> bool:
            return not await is_free()

        await until(is_taken, 10.0)
        await until(is_free, 60.0)
        assert await ask(client, prompt_of(7, 30), 20) == expected(prompt_of(7, 30), 20)
        messages: list[pb.GenerateResponse] = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_to_its_end(call, messages)
        num_read = sum(len(delta.token_ids) for m in messages for delta in m.deltas)
        ended = failure(caught.value)
        assert (ended.code, ended.reason) == (grpc.StatusCode.ABORTED, "STREAM_INTERRUPTED")
        assert ended.metadata["tokens_emitted"] == str(num_read)
        assert 0 < num_read < NUM_CHOICES * NUM_TOKENS
        assert "read" in ended.message
        await client.close()
