"""Measures a cluster through the SDK: `python -m bench.serving --help`.

Without --address it starts one (router, prefill and decode workers) and stops it again. The
figures go to stdout as a table, or as JSON; progress goes to stderr. Errors are counted by
reason, and end in exit code 1.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from bench.load import Load, run_load
from bench.report import as_table, summarize, summarize_added
from deploy.launcher import LocalCluster
from deploy.plan import ClusterPlan
from penstock import AsyncClient

SHIPPED_MODEL = Path(__file__).resolve().parent.parent / "models" / "penstock-tiny"
NUM_WARM_UP = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A running cluster; the router's pid where it is ours."""

    address: str
    setup: str
    router_pid: int | None = None


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="penstock bench", description=__doc__)
    where = parser.add_argument_group("cluster")
    where.add_argument("--address", help="a running one; default: start one")
    where.add_argument("--model-dir", type=Path, default=SHIPPED_MODEL)
    where.add_argument("--random-model", choices=["54m", "100m"], help="random weights instead")
    where.add_argument("--prefill", type=int, default=1)
    where.add_argument("--decode", type=int, default=1)
    where.add_argument("--threads", type=int, default=1, help="a worker")
    where.add_argument("--num-blocks", type=int, default=512, help="a worker")
    load = parser.add_argument_group("load")
    load.add_argument("--requests", type=int, default=100)
    load.add_argument("--concurrency", type=int, default=4, help="closed loop: so many at a time")
    load.add_argument("--rate", type=float, help="open loop: Poisson arrivals a second")
    load.add_argument("--prompt-tokens", type=int, default=128)
    load.add_argument("--output-tokens", type=int, default=64)
    load.add_argument("--shared-prefix", type=int, default=0, help="tokens")
    load.add_argument("--unloaded", type=int, default=100, help="requests one at a time; 0: none")
    load.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="JSON on stdout")
    parser.add_argument("--output", type=Path, help="write the JSON there as well")
    return parser.parse_args(arguments)


@contextlib.asynccontextmanager
async def target(flags: argparse.Namespace) -> AsyncIterator[Target]:
    if flags.address:
        yield Target(address=flags.address, setup=f"running cluster at {flags.address}")
        return
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        checkpoint = _checkpoint(flags, Path(folder) / f"random-{flags.random_model}")
        plan = ClusterPlan(
            checkpoint=checkpoint,
            num_prefill=flags.prefill,
            num_decode=flags.decode,
            num_threads=flags.threads,
            num_blocks=flags.num_blocks,
        )
        async with LocalCluster(plan, say=_say) as cluster:
            setup = (
                f"{plan.model_name}: {flags.prefill} prefill, {flags.decode} decode,"
                f" {flags.threads} thread(s) each"
            )
            pid = cluster.children["router"].pid
            yield Target(address=cluster.address, setup=setup, router_pid=pid)


def _checkpoint(flags: argparse.Namespace, folder: Path) -> Path:
    if not flags.random_model:
        return Path(flags.model_dir)
    # Loaded only here: it needs torch.
    from bench.random_llama import SHAPE_54M, SHAPE_100M, write_random_llama

    shape = {"54m": SHAPE_54M, "100m": SHAPE_100M}[flags.random_model]
    _say(f"Writing a random checkpoint of {flags.random_model} parameters.")
    write_random_llama(folder, shape, tokenizer_from=SHIPPED_MODEL)
    return folder


async def run(flags: argparse.Namespace) -> dict[str, Any]:
    async with target(flags) as cluster:
        async with AsyncClient(cluster.address) as client:
            vocab_size = (await client.model()).vocab_size
        load = Load(
            num_requests=flags.requests,
            concurrency=flags.concurrency,
            rate=flags.rate,
            prompt_tokens=flags.prompt_tokens,
            output_tokens=flags.output_tokens,
            shared_prefix=flags.shared_prefix,
            vocab_size=vocab_size,
            seed=flags.seed,
        )
        return await _measure(cluster, load, num_unloaded=flags.unloaded)


async def _measure(cluster: Target, load: Load, *, num_unloaded: int) -> dict[str, Any]:
    one_by_one = replace(load, rate=None, concurrency=1)
    # Other seeds: what warms up, or is measured alone, must not be in the cache of the load.
    await run_load(
        cluster.address, replace(one_by_one, num_requests=NUM_WARM_UP, seed=load.seed + 1000)
    )
    report: dict[str, Any] = {"setup": cluster.setup, "shape": _shape(load)}
    if num_unloaded:
        _say(f"{num_unloaded} requests, one at a time.")
        alone = replace(one_by_one, num_requests=num_unloaded, seed=load.seed + 2000)
        measured, _ = await run_load(cluster.address, replace(alone, output_tokens=4))
        report["added_to_ttft"] = summarize_added(measured)
    _say(f"{load.num_requests} requests, {_shape(load)['arrivals']}.")
    measured, seconds = await run_load(cluster.address, load)
    report["load"] = summarize(measured, seconds)
    if cluster.router_pid:
        resident = psutil.Process(cluster.router_pid).memory_info().rss
        report["router"] = {"resident_mb": round(resident / 1e6, 1)}
    return report


def _shape(load: Load) -> dict[str, Any]:
    is_open = load.rate is not None
    arrivals = f"{load.rate:g} a second" if is_open else f"{load.concurrency} at a time"
    return {
        "arrivals": arrivals,
        "prompt_tokens": load.prompt_tokens,
        "output_tokens": load.output_tokens,
        "shared_prefix": load.shared_prefix,
        "seed": load.seed,
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    flags = parse(arguments)
    report = asyncio.run(run(flags))
    value = json.dumps(report, indent=2)
    print(value if flags.json else as_table(report))
    if flags.output:
        flags.output.write_text(value + "\n")
    return 1 if report["load"]["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
