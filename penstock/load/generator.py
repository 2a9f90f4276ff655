"""Load on a cluster through the SDK: a closed loop (so many at a time) or an open one (Poisson
arrivals at a rate, whether or not answers keep up)."""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from penstock.aio import AsyncClient, AsyncStream
from penstock.errors import PenstockError
from penstock.load.report import Measured
from penstock.request import GenerateOptions
from penstock.retry import RetryPolicy

Prompt = list[int]
Progress = Callable[[], object]  # called when a request has ended
FIRST_ID = 16  # those before are special tokens, as a rule
NO_RETRIES = RetryPolicy(max_attempts=1)  # a retry would hide an error


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedLoad:
    num_requests: int = 100
    concurrency: int = 4
    rate: float | None = None  # requests a second; None: the closed loop
    prompt_tokens: int = 128
    output_tokens: int = 64
    shared_prefix: int = 0  # tokens that all prompts begin with
    vocab_size: int = 2048
    seed: int = 0
    timeout_s: float = 300.0
    model: str = ""  # empty: the one that is served
    service_class: str = ""  # empty: the policy's first

    def options(self, prompt: Prompt) -> GenerateOptions:
        """Gives the options of one request: greedy, and of the length that was asked for."""
        return {
            "token_ids": prompt,
            "max_tokens": self.output_tokens,
            "ignore_eos": True,
            "temperature": 0.0,
            "timeout": self.timeout_s,
            "model": self.model,
            "service_class": self.service_class,
        }


def make_prompts(load: OfferedLoad) -> Iterator[Prompt]:
    """Random ids, drawn as they are needed: no two prompts share more than what they should."""
    dice = random.Random(load.seed)
    first = min(FIRST_ID, max(0, load.vocab_size - 1))

    def draw(count: int) -> Prompt:
        return [dice.randrange(first, max(1, load.vocab_size)) for _ in range(count)]

    prefix = draw(min(load.shared_prefix, load.prompt_tokens))
    for _ in range(load.num_requests):
        yield prefix + draw(load.prompt_tokens - len(prefix))


async def measure(client: AsyncClient, prompt: Prompt, load: OfferedLoad, due: float) -> Measured:
    """One request; an error is part of the measurement."""
    measured = Measured()
    try:
        async with client.generate(**load.options(prompt)) as stream:
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
    measured.decode_worker = answer.accepted.decode_worker
    measured.prefill_worker = answer.accepted.prefill_worker


async def run_load(
    client: AsyncClient, load: OfferedLoad, *, progress: Progress = lambda: None
) -> tuple[list[Measured], float]:
    """All requests, and the seconds that they took together."""
    started = time.perf_counter()
    if load.rate is None:
        measured = await _closed_loop(client, load, progress)
    else:
        measured = await _open_loop(client, load, load.rate, progress)
    return measured, time.perf_counter() - started


async def _closed_loop(
    client: AsyncClient, load: OfferedLoad, progress: Progress
) -> list[Measured]:
    ahead = make_prompts(load)
    measured: list[Measured] = []

    async def user() -> None:
        for prompt in ahead:
            measured.append(await measure(client, prompt, load, time.perf_counter()))
            progress()

    async with asyncio.TaskGroup() as users:
        for _ in range(load.concurrency):
            users.create_task(user())
    return measured


async def _open_loop(
    client: AsyncClient, load: OfferedLoad, rate: float, progress: Progress
) -> list[Measured]:
    dice = random.Random(load.seed + 1)
    due = time.perf_counter()
    async with asyncio.TaskGroup() as requests:
        tasks = []
        for prompt in make_prompts(load):
            due += dice.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            task = requests.create_task(measure(client, prompt, load, due))
            task.add_done_callback(lambda _: progress())
            tasks.append(task)
    return [task.result() for task in tasks]
