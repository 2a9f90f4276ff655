"""Makes what one life of a worker of either role is made of, before its event loop runs; and the
same for the life that follows it in the same process, which reads no file: engine, memory and
tokenizer stay.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from cluster.addresses import Endpoint
from cluster.authority import Credentials
from cluster.mac import derived_key
from cluster.measurements import Measurements
from cluster.membership import new_incarnation
from cluster.process import cache_folder
from cluster.secrets import Secrets, load_secrets
from cluster.tokenizer import Tokenizer
from cluster.tracing import Tracing, open_tracing
from cluster.types import Member, Role
from engine.build import plan_engine
from engine.config import EngineConfig
from engine.thread import ForwardEngine
from engine.warm_up import warm_up
from kv_transfer.doors import DoorSettings, open_doors, open_pool
from kv_transfer.pairs import Pairs
from kv_transfer.pool import KvPool, PoolConfig
from kv_transfer.tcp.dial import TcpAddress
from worker.config import WorkerConfig
from worker.cost import StepCost
from worker.process import describe


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerParts:
    member: Member  # its address may still say port 0
    secrets: Secrets
    credentials: Credentials
    tokenizer: Tokenizer
    engine: ForwardEngine
    pairs: Pairs
    cost: StepCost
    measurements: Measurements
    tracing: Tracing | None = None  # None: nobody collects


def build_parts(config: WorkerConfig, role: Role, *, wire_dtype: str | None = None) -> WorkerParts:
    """Loads the model and warms it up. KV may be narrowed to `wire_dtype` on its way here.

    Raises ConfigError or CheckpointError for what cannot be served.
    """
    secrets = load_secrets(config.secrets_file)
    credentials = Credentials(secrets.authority)
    config.check_ways(credentials)
    tracing = open_tracing(config.tracing, service="penstock-worker", instance=config.worker_id)
    plan = plan_engine(_engine_config(config))
    incarnation = new_incarnation()
    measurements = Measurements(cache_folder())
    place = PoolConfig(
        incarnation=incarnation, num_bytes=plan.layout.pool_bytes, run_dir=Path(config.run_dir)
    )
    pool = open_pool(place, config.device)
    pairs = _pairs(config, secrets, credentials, pool, measurements)
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
        credentials=credentials,
        tokenizer=Tokenizer.load(Path(config.checkpoint)),
        engine=engine,
        pairs=pairs,
        cost=cost,
        measurements=measurements,
        tracing=tracing,
    )


def next_parts(
    before: WorkerParts, role: Role, config: WorkerConfig, *, wire_dtype: str | None = None
) -> WorkerParts:
    """Makes the parts of the life that follows one that has ended: another incarnation and its own
    transports, over the same engine and memory."""
    incarnation, pool = new_incarnation(), before.pairs.pool
    pool.renew(incarnation)
    pairs = _pairs(config, before.secrets, before.credentials, pool, before.measurements)
    worker = before.member.worker
    return replace(
        before,
        pairs=pairs,
        member=replace(
            before.member,
            role=role,
            past_lives=(*before.member.past_lives, worker.incarnation),
            worker=replace(
                worker,
                incarnation=incarnation,
                address=str(config.dialled),
                transports=pairs.addresses,
                fingerprint=replace(worker.fingerprint, wire_dtype=wire_dtype),
            ),
        ),
    )


def _pairs(
    config: WorkerConfig,
    secrets: Secrets,
    credentials: Credentials,
    pool: KvPool,
    measurements: Measurements,
) -> Pairs:
    settings = DoorSettings(
        host=Endpoint.parse(config.address).host,
        advertise=config.dialled.host,
        key=derived_key(secrets.cluster_token, "kv transfer"),
        tcp_port=config.tcp_port,
        num_tcp_streams=config.tcp_streams,
        credentials=credentials,
        allows_nixl_over_tcp=config.require_transport == "nixl" or "tcp" not in config.transports,
        measurements=measurements,
    )
    doors = open_doors(config.transports, pool, settings)
    return Pairs(pool, doors, required=config.require_transport)


def kv_tls_ports(parts: WorkerParts) -> set[int]:
    """Lists the ports where KV comes in under TLS."""
    if (address := parts.pairs.addresses.get("tcp")) is None:
        return set()
    target = TcpAddress.parse(address)
    return {target.port} if parts.credentials.at(target.endpoint) else set()


def _engine_config(config: WorkerConfig) -> EngineConfig:
    return EngineConfig(
        kind=config.engine,
        checkpoint=Path(config.checkpoint),
        num_blocks=config.num_blocks,
        block_size=config.block_size,
        kv_dtype=config.kv_dtype,
        attention=config.attention,
        weights=config.weights,
        num_threads=config.num_threads,
        device=config.device,
    )
