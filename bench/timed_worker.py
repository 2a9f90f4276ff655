"""`python -m bench.timed_worker ROLE COSTS --config FILE`: a real worker process around an engine
that only takes its time. COSTS is JSON: {"prefill": {"c0": ...}, "decode": {"d0": ...}}."""

import argparse
import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

from bench.timed_engine import TimedEngine
from cluster import process
from cluster.config import load_config
from cluster.cost import StepCost
from cluster.tokenizer import Tokenizer
from cluster.types import DecodeCost, PrefillCost, Role
from decode_worker.config import DecodeWorkerConfig
from decode_worker.worker import DecodeWorker
from engine.warm_up import warm_up
from prefill_worker.config import PrefillWorkerConfig
from prefill_worker.worker import PrefillWorker
from worker.config import WorkerConfig
from worker.parts import WorkerParts, build_parts


def timed(
    parts: WorkerParts, config: WorkerConfig, costs: dict[str, dict[str, float]]
) -> WorkerParts:
    """The same worker with the other engine, warmed up as any."""
    layout, cost = parts.member.worker.fingerprint.layout, StepCost()
    engine = TimedEngine(layout, PrefillCost(**costs["prefill"]), DecodeCost(**costs["decode"]))
    for batch, seconds in warm_up(engine, layout, config.max_batch_tokens):
        cost.observe(batch.prompts, batch.decode_contexts, seconds)
    return replace(parts, engine=engine, cost=cost)


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
            tokenizer = Tokenizer.load(Path(decode.checkpoint))
            worker = DecodeWorker(decode, parts, tokenizer=tokenizer)
        else:
            prefill = load_config(PrefillWorkerConfig, flags.config)
            parts = timed(build_parts(prefill, Role.PREFILL), prefill, flags.costs)
            worker = PrefillWorker(prefill, parts)
        await worker.serve(drain)

    return process.run(serve)


if __name__ == "__main__":
    sys.exit(main())
