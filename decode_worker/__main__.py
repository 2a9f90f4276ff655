"""`python -m decode_worker --config FILE`: one decode worker."""

import argparse
import asyncio
import sys
from pathlib import Path

from cluster import process
from cluster.config import load_config
from cluster.cost import StepCost
from cluster.membership import new_incarnation
from cluster.secrets import load_secrets
from cluster.tokenizer import Tokenizer
from cluster.types import Role
from cluster.worker_process import describe
from decode_worker.config import DecodeWorkerConfig
from decode_worker.worker import DecodeWorker
from engine.build import EngineChoice, plan_engine
from engine.warm_up import warm_up
from kv_transfer.doors import DoorSettings, open_doors
from kv_transfer.pairs import Pairs
from kv_transfer.pool import FilePool, PoolConfig


def build(config: DecodeWorkerConfig) -> DecodeWorker:
    """Loads the model and warms it up."""
    secrets = load_secrets(Path(config.secrets_file))
    plan = plan_engine(_engine_choice(config))
    incarnation = new_incarnation()
    pool = FilePool(
        PoolConfig(
            incarnation=incarnation, num_bytes=plan.layout.pool_bytes, run_dir=Path(config.run_dir)
        )
    )
    settings = DoorSettings(
        host=config.address.rpartition(":")[0], key=secrets.cluster_token.encode()
    )
    doors = open_doors(config.transports, pool, settings)
    pairs = Pairs(pool, doors, required=config.require_transport)
    member = describe(
        config,
        Role.DECODE,
        incarnation=incarnation,
        layout=plan.layout,
        context_length=plan.context_length,
        transports=pairs.addresses,
    )
    engine = plan.build(pool.buffer)
    cost = StepCost()
    for batch, seconds in warm_up(engine, plan.layout, config.max_batch_tokens):
        cost.observe(batch.prompts, batch.decode_contexts, seconds)
    return DecodeWorker(
        config,
        member=member,
        secrets=secrets,
        engine=engine,
        pairs=pairs,
        tokenizer=Tokenizer.load(Path(config.checkpoint)),
        cost=cost,
    )


def _engine_choice(config: DecodeWorkerConfig) -> EngineChoice:
    return EngineChoice(
        kind=config.engine,
        checkpoint=Path(config.checkpoint),
        num_blocks=config.num_blocks,
        block_size=config.block_size,
        num_threads=config.num_threads,
        device=config.device,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="decode_worker", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="its YAML")
    arguments = parser.parse_args()

    async def serve(drain: asyncio.Event) -> None:
        await build(load_config(DecodeWorkerConfig, arguments.config)).serve(drain)

    return process.run(serve)


if __name__ == "__main__":
    sys.exit(main())
