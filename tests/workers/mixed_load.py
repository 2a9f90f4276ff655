"""Mixed requests with random cancels, each answer checked."""

import asyncio
import random

from penstock.v1 import inference_pb2 as pb
from tests.router.cluster_of_fakes import Answer
from tests.workers.answers import expected, prompt_of
from tests.workers.local_cluster import LocalCluster

CONCURRENCY = 24


def mixed_request(rng: random.Random) -> pb.GenerateRequest:
    prompt = [*prompt_of(rng.randrange(4), rng.choice([8, 33, 64])), rng.randrange(250)]
    return pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=prompt),
        sampling=pb.SamplingParams(temperature=rng.choice([0.0, 1.0]), seed=rng.randrange(100)),
        stop=pb.LengthAndStop(max_tokens=rng.randrange(1, 40), ignore_eos=True),
        n=rng.choice([1, 1, 1, 2]),
        priority=rng.randrange(3),
    )


async def one(cluster: LocalCluster, rng: random.Random) -> bool:
    """One request; whether it was let to end."""
    request = mixed_request(rng)
    answer = Answer()
    task = asyncio.create_task(cluster.generate(request, answer=answer, timeout_s=60))
    if rng.random() < 0.4:
        num_messages = rng.randrange(4)
        await cluster.until(lambda: task.done() or len(answer.messages) >= num_messages)
        task.cancel()
    result = (await asyncio.gather(task, return_exceptions=True))[0]
    if isinstance(result, BaseException):
        assert isinstance(result, asyncio.CancelledError), result
    check_prefix(request, answer, is_whole=not isinstance(result, BaseException))
    return not isinstance(result, BaseException)


def check_prefix(request: pb.GenerateRequest, answer: Answer, *, is_whole: bool) -> None:
    """What arrived is the beginning of the right answer, or all of it."""
    for choice in range(request.n):
        ids = [
            i
            for message in answer.messages
            for delta in message.deltas
            if delta.choice == choice
            for i in delta.token_ids
        ]
        right = expected(
            list(request.token_ids.ids),
            len(ids),
            seed=request.sampling.seed,
            temperature=request.sampling.temperature,
            choice=choice,
        )
        assert ids == right
        assert len(ids) == request.stop.max_tokens or not is_whole


async def soak(cluster: LocalCluster, num_requests: int) -> None:
    rng = random.Random(20)
    limit = asyncio.Semaphore(CONCURRENCY)

    async def bounded(seed: int) -> bool:
        async with limit:
            return await one(cluster, random.Random(seed))

    ended = await asyncio.gather(*(bounded(rng.randrange(1 << 30)) for _ in range(num_requests)))
    assert sum(ended) > num_requests // 3
    await asyncio.wait_for(cluster.idle(), 2.0)
    assert sum(r.worker.remote_prompts.num_recomputes for r in cluster.decode) == 0
