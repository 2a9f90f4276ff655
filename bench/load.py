"""Load on a cluster through the SDK: a closed loop (so many at a time) or an open one (Poisson
arrivals at a rate, whether or not answers keep up)."""

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.report import Measured
from penstock import AsyncClient, AsyncStream, PenstockError, RetryPolicy

Prompt = list[int]
NO_RETRIES = RetryPolicy(max_attempts=1)  # a retry would hide an error


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    num_requests: int = 100
    concurrency: int = 4
    rate: float | None = None  # requests a second; None: the closed loop
    prompt_tokens: int = 128
    output_tokens: int = 64
    shared_prefix: int = 0  # tokens that all prompts begin with
    vocab_size: int = 2048
    seed: int = 0
    timeout_s: float = 300.0


def make_prompts(load: Load) -> list[Prompt]:
    """Random ids: no two prompts share more than what they should."""
    dice = random.Random(load.seed)

    def draw(count: int) -> Prompt:
        return [dice.randrange(16, load.vocab_size) for _ in range(count)]

    prefix = draw(min(load.shared_prefix, load.prompt_tokens))
    return [prefix + draw(load.prompt_tokens - len(prefix)) for _ in range(load.num_requests)]


async def measure(client: AsyncClient, prompt: Prompt, load: Load, due: float) -> Measured:
    """One request; an error is part of the measurement."""
    measured = Measured()
    try:
        stream = client.generate(
            token_ids=prompt,
            max_tokens=load.output_tokens,
            ignore_eos=True,
            temperature=0.0,
            timeout=load.timeout_s,
        )
        async with stream:
            await _read(stream, measured, due)
    except PenstockError as error:
        measured.error = error.reason
    return measured


async def _read(stream: AsyncStream, measured: Measured, due: float) -> None:
    async for chunk in stream:
        if stream.num_messages > len(measured.arrivals):
            measured.arrivals.append(time.perf_counter() - due)
            measured.num_tokens.append(0)
        measured.num_tokens[-1] += len(chunk.token_ids)
    answer = await stream.result()
    timeline = answer.timeline
    measured.prompt_tokens = answer.usage.prompt_tokens
    measured.cached_tokens = answer.usage.cached_tokens
    measured.router_s = timeline.router_seconds
    measured.first_token_s = timeline.first_token_seconds
    measured.queue_s = timeline.queue_seconds
    measured.prefill_s = timeline.prefill_seconds
    measured.forward_s = timeline.forward_seconds
    measured.transfer_s = timeline.transfer_seconds
    measured.transfer_visible_s = timeline.transfer_visible_seconds
    measured.transferred_bytes = timeline.transferred_bytes
    measured.recomputes = timeline.recomputes
    measured.preemptions = timeline.preemptions
    measured.is_remote = bool(answer.accepted.prefill_worker)


async def run_load(address: str, load: Load) -> tuple[list[Measured], float]:
    """All requests, and the seconds that they took together."""
    prompts = make_prompts(load)
    async with AsyncClient(address, retries=NO_RETRIES) as client:
        started = time.perf_counter()
        if load.rate is None:
            measured = await _closed_loop(client, prompts, load)
        else:
            measured = await _open_loop(client, prompts, load, load.rate)
        return measured, time.perf_counter() - started


async def _closed_loop(
    client: AsyncClient, prompts: Sequence[Prompt], load: Load
) -> list[Measured]:
    ahead: Iterator[Prompt] = iter(prompts)
    measured: list[Measured] = []

    async def user() -> None:
        measured.extend(
            [await measure(client, prompt, load, time.perf_counter()) for prompt in ahead]
        )

    async with asyncio.TaskGroup() as users:
        for _ in range(load.concurrency):
            users.create_task(user())
    return measured


async def _open_loop(
    client: AsyncClient, prompts: Sequence[Prompt], load: Load, rate: float
) -> list[Measured]:
    dice = random.Random(load.seed + 1)
    due = time.perf_counter()
    async with asyncio.TaskGroup() as requests:
        tasks = []
        for prompt in prompts:
            due += dice.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(requests.create_task(measure(client, prompt, load, due)))
    return [task.result() for task in tasks]
