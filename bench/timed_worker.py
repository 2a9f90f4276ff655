"""`python -m bench.timed_worker ROLE COSTS --config FILE`: a real worker process around an engine
that only takes its time. COSTS is JSON: {"prefill": {"c0": ...}, "decode": {"d0": ...}}, with
"link": {"bytes_per_s": ...} where KV is to take its time, too."""

import argparse
import asyncio
import json
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

from bench.timed_engine import TimedEngine
from bench.timed_link import timed_pairs
from cluster import process
from cluster.config import load_config
from cluster.types import DecodeCost, PrefillCost, Role
from decode_worker.config import DecodeWorkerConfig
from decode_worker.worker import DecodeWorker
from prefill_worker.config import PrefillWorkerConfig
from prefill_worker.worker import PrefillWorker
from worker.config import WorkerConfig
from worker.cost import StepCost
from worker.parts import WorkerParts, build_parts

_NUM_LESSONS = 32


def timed(
    parts: WorkerParts, config: WorkerConfig, costs: dict[str, dict[str, float]]
) -> WorkerParts:
    """The same worker with the other engine, that knows its costs as if it had served for long."""
    layout = parts.member.worker.fingerprint.layout
    prefill, decode = PrefillCost(**costs["prefill"]), DecodeCost(**costs["decode"])
    cost = _learned(prefill, decode, config.max_batch_tokens)
    link = costs.get("link")
    pairs = timed_pairs(parts.pairs, **link) if link else parts.pairs
    return replace(parts, engine=TimedEngine(layout, prefill, decode), cost=cost, pairs=pairs)


def _learned(prefill: PrefillCost, decode: DecodeCost, most: int) -> StepCost:
    """From steps of many sizes; it goes on learning from those that it will run."""
    cost = StepCost()
    for _ in range(_NUM_LESSONS):
        for row in product((most // 32, most // 8, most // 2), (0, most, 4 * most)):
            cost.observe([row], [], prefill.seconds(*row))
        for batch in (1, 4, 16):
            cost.observe([], [most] * batch, decode.seconds(most * batch, batch))
    return cost


def main() -> int:
    parser = argparse.ArgumentParser(prog="timed_worker", description=__doc__)
    parser.add_argument("role", type=Role)
    parser.add_argument("costs", type=json.loads)
    parser.add_argument("--config", type=Path, required=True)
    flags = parser.parse_args()

    async def serve(drain: asyncio.Event) -> None:
        worker: DecodeWorker | PrefillWorker
        if flags.role is Role.DECODE:
            decode = load_config(DecodeWorkerConfig, flags.config)
            parts = timed(build_parts(decode, Role.DECODE), decode, flags.costs)
            worker = DecodeWorker(decode, parts)
        else:
            prefill = load_config(PrefillWorkerConfig, flags.config)
            parts = timed(build_parts(prefill, Role.PREFILL), prefill, flags.costs)
            worker = PrefillWorker(prefill, parts)
        await worker.serve(drain)

    return process.run(serve)


if __name__ == "__main__":
    sys.exit(main())
