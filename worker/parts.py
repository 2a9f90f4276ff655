"""What a worker of either role is made of, before its event loop runs."""

from dataclasses import dataclass
from pathlib import Path

from cluster.cost import StepCost
from cluster.mac import derived_key
from cluster.measurements import Measurements
from cluster.membership import new_incarnation
from cluster.process import cache_folder
from cluster.secrets import Secrets, load_secrets
from cluster.types import Incarnation, KvLayout, Member, Role
from cluster.worker_process import describe
from engine.build import EngineChoice, plan_engine
from engine.thread import ForwardEngine
from engine.warm_up import warm_up
from kv_transfer.doors import DoorSettings, open_doors, open_pool
from kv_transfer.pairs import Pairs
from kv_transfer.pool import PoolConfig
from worker.config import WorkerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerParts:
    member: Member  # its address may still say port 0
    secrets: Secrets
    engine: ForwardEngine
    pairs: Pairs
    cost: StepCost
    measurements: Measurements


def build_parts(config: WorkerConfig, role: Role, *, wire_dtype: str | None = None) -> WorkerParts:
    """Loads the model and warms it up. KV may be narrowed to `wire_dtype` on its way here.

    Raises ConfigError or CheckpointError for what cannot be served.
    """
    secrets = load_secrets(Path(config.secrets_file))
    plan = plan_engine(_engine_choice(config))
    incarnation = new_incarnation()
    measurements = Measurements(cache_folder())
    pairs = _pairs(config, secrets, incarnation, plan.layout, measurements)
    member = describe(
        config,
        role,
        incarnation=incarnation,
        layout=plan.layout,
        context_length=plan.context_length,
        transports=pairs.addresses,
        wire_dtype=wire_dtype,
    )
    engine = plan.build(pairs.pool.buffer, measurements)
    cost = StepCost()
    for batch, seconds in warm_up(engine, plan.layout, config.max_batch_tokens):
        cost.observe(batch.prompts, batch.decode_contexts, seconds)
    return WorkerParts(
        member=member,
        secrets=secrets,
        engine=engine,
        pairs=pairs,
        cost=cost,
        measurements=measurements,
    )


def _pairs(
    config: WorkerConfig,
    secrets: Secrets,
    incarnation: Incarnation,
    layout: KvLayout,
    measurements: Measurements,
) -> Pairs:
    place = PoolConfig(
        incarnation=incarnation, num_bytes=layout.pool_bytes, run_dir=Path(config.run_dir)
    )
    pool = open_pool(place, config.device)
    settings = DoorSettings(
        host=config.address.rpartition(":")[0],
        key=derived_key(secrets.cluster_token, "kv transfer"),
        tcp_port=config.tcp_port,
        num_tcp_streams=config.tcp_streams,
        tls=config.tcp_tls,
        allows_nixl_over_tcp=config.require_transport == "nixl" or "tcp" not in config.transports,
        measurements=measurements,
    )
    doors = open_doors(config.transports, pool, settings)
    return Pairs(pool, doors, required=config.require_transport)


def _engine_choice(config: WorkerConfig) -> EngineChoice:
    return EngineChoice(
        kind=config.engine,
        checkpoint=Path(config.checkpoint),
        num_blocks=config.num_blocks,
        block_size=config.block_size,
        kv_dtype=config.kv_dtype,
        num_threads=config.num_threads,
        device=config.device,
    )
