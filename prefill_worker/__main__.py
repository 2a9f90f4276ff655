"""`python -m prefill_worker --config FILE`: one prefill worker."""

import argparse
import asyncio
import sys
from pathlib import Path

from cluster import process
from cluster.config import load_config
from cluster.cost import StepCost
from cluster.membership import new_incarnation
from cluster.secrets import load_secrets
from cluster.types import Role
from cluster.worker_process import describe
from engine.build import EngineChoice, build_engine, context_length, layout_of
from engine.warm_up import warm_up
from kv_transfer.doors import TRANSPORTS
from kv_transfer.transport import PoolConfig
from prefill_worker.config import PrefillWorkerConfig
from prefill_worker.worker import PrefillWorker


def build(config: PrefillWorkerConfig) -> PrefillWorker:
    """Loads the model and warms it up."""
    secrets = load_secrets(Path(config.secrets_file))
    choice = _engine_choice(config)
    layout = layout_of(choice)
    incarnation = new_incarnation()
    pool = PoolConfig(
        incarnation=incarnation, num_bytes=layout.pool_bytes, run_dir=Path(config.run_dir)
    )
    transport = TRANSPORTS[config.transport](pool)
    member = describe(
        config,
        Role.PREFILL,
        incarnation=incarnation,
        layout=layout,
        context_length=context_length(choice),
        transports={transport.name: transport.address},
    )
    engine = build_engine(choice, transport.buffer)
    cost = StepCost()
    for batch, seconds in warm_up(engine, layout, config.max_batch_tokens):
        cost.observe(batch.prompts, batch.decode_contexts, seconds)
    return PrefillWorker(
        config,
        member=member,
        secrets=secrets,
        engine=engine,
        transport=transport,
        cost=cost,
    )


def _engine_choice(config: PrefillWorkerConfig) -> EngineChoice:
    return EngineChoice(
        kind=config.engine,
        checkpoint=Path(config.checkpoint),
        num_blocks=config.num_blocks,
        block_size=config.block_size,
        num_threads=config.num_threads,
        device=config.device,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="prefill_worker", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="its YAML")
    arguments = parser.parse_args()

    async def serve(drain: asyncio.Event) -> None:
        await build(load_config(PrefillWorkerConfig, arguments.config)).serve(drain)

    return process.run(serve)


if __name__ == "__main__":
    sys.exit(main())
