"""One measurement of a cluster: it is warmed up, asked one request at a time, then loaded."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from penstock.aio import AsyncClient
from penstock.load.generator import NO_RETRIES, OfferedLoad, Progress, make_prompts, run_load
from penstock.load.report import summarize, summarize_added

NUM_WARM_UP = 8
UNLOADED_TOKENS = 4  # of an answer when only the time to its first token counts

Stage = Callable[[str, int], Progress]  # (what, how many requests) -> to call after each


async def measure_load(
    address: str,
    load: OfferedLoad,
    *,
    num_unloaded: int,
    stage: Stage,
    caller: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The figures as a JSON value. Errors under load are counted in it; one before the load
    raises PenstockError: there is nothing to measure."""
    async with AsyncClient(
        address, **(caller or {}), retries=NO_RETRIES, connect_timeout=0
    ) as client:
        model = await client.model(load.model)
        load = replace(load, vocab_size=model.vocab_size, model=model.name)
        one_by_one = replace(load, rate=None, concurrency=1, output_tokens=UNLOADED_TOKENS)
        # Other seeds: what warms up, or is measured alone, must not be in the cache of the load.
        await _warm_up(client, replace(load, num_requests=NUM_WARM_UP, seed=load.seed + 1000))
        report: dict[str, Any] = {"address": address, "model": model.name, "shape": _shape(load)}
        if num_unloaded:
            alone = replace(one_by_one, num_requests=num_unloaded, seed=load.seed + 2000)
            progress = stage("one at a time", num_unloaded)
            measured, _ = await run_load(client, alone, progress=progress)
            report["added_to_ttft"] = summarize_added(measured)
        progress = stage(_arrivals(load), load.num_requests)
        measured, seconds = await run_load(client, load, progress=progress)
        report["load"] = summarize(measured, seconds)
    return report


async def _warm_up(client: AsyncClient, load: OfferedLoad) -> None:
    for prompt in make_prompts(load):
        await client.generate(**load.options(prompt)).result()


def _arrivals(load: OfferedLoad) -> str:
    return f"{load.concurrency} at a time" if load.rate is None else f"{load.rate:g} a second"


def _shape(load: OfferedLoad) -> dict[str, Any]:
    return {
        "arrivals": _arrivals(load),
        "prompt_tokens": load.prompt_tokens,
        "output_tokens": load.output_tokens,
        "shared_prefix": load.shared_prefix,
        "class": load.service_class,
        "seed": load.seed,
    }
