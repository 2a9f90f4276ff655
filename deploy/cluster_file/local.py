"""Picks what of a cluster's document one machine starts: a plan of local processes; and what it
leaves out, which nobody should learn by surprise.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

from cluster.errors import ConfigError
from cluster.host import num_cpus
from deploy.cluster_file.document import (
    DEFAULT_BLOCKS,
    IN_MEMORY,
    ClusterDocument,
    Labels,
    WorkerPool,
)
from deploy.plan import ClusterPlan, Part, PoolPlan
from engine.checkpoint import described_spec, load_spec
from engine.model_spec import ModelSpec
from router.policy_file.kind import POLICY
from router.tls.certificate import TlsFiles

SHIPPED_MODEL: Final = Path(__file__).resolve().parents[2] / "shipped_model" / "penstock-tiny"
# Named alike in a worker's own file.
_OF_WORKERS: Final = (
    "num_threads",
    "device",
    "block_size",
    "kv_dtype",
    "attention",
    "weights",
    "max_sequences",
    "max_waiting",
    "max_batch_tokens",
    "chunk_s",
)


def local_plan(
    document: ClusterDocument,
    folder: Path,
    *,
    pulled: Path | None = None,
    described: Path | None = None,
) -> ClusterPlan:
    """`folder`: where relative paths begin; `pulled`: where the weights are that the document has
    pulled; `described`: instead, where no more than what says what they are is.

    Raises ConfigError and CheckpointError: what no process could start from is told before any.
    """
    spec = document.spec
    there = pulled or described or spec.checkpoint or SHIPPED_MODEL
    checkpoint = (folder / there).resolve()
    if not checkpoint.is_dir():
        raise ConfigError(
            f"There is no checkpoint directory at {checkpoint}: give one with --model-dir, or as"
            " 'checkpoint' in the cluster's file."
        )
    if spec.policy_file:
        POLICY.load(folder / spec.policy_file)
    model = described_spec(checkpoint) if described else load_spec(checkpoint)
    return ClusterPlan(
        name=document.metadata.name,
        checkpoint=checkpoint,
        model=spec.model or (spec.weights.name if spec.weights and not spec.checkpoint else ""),
        pools=tuple(_pool_plan(pool, model) for pool in spec.pools),
        host=spec.routers.bind,
        advertise=spec.routers.advertise or "",
        insecure=spec.insecure,
        port=spec.routers.ports[0],
        http_port=spec.routers.http_port(0),
        internal_port=spec.routers.internal_ports[0],
        metrics_bind=spec.metrics_bind,
        store=None if spec.store == IN_MEMORY else spec.store,
        secrets_file=_absolute(folder, spec.secrets_file),
        keys_file=_absolute(folder, spec.routers.keys_file),
        tls=_absolute_files(folder, spec.routers.tls),
        hash_grain=spec.hash_grain,
        transports=spec.transports,
        require_transport=spec.require_transport,
        drain_s=spec.drain_s,
        log_level=spec.log.level,
        log_levels=spec.log.levels,
        log_format=spec.log.format,
        router={
            "tracing": asdict(spec.tracing),
            "limits": asdict(spec.limits),
            "policy_file": spec.policy_file and str(_absolute(folder, spec.policy_file)),
        },
        worker={"tracing": asdict(spec.tracing)},
    )


def left_out(document: ClusterDocument) -> Iterator[str]:
    """Sentences, of what takes more than one machine."""
    spec = document.spec
    if spec.routers.count > 1:
        yield f"one router is started, not {spec.routers.count}."
    if spec.routers.labels != Labels():
        yield "routers have labels, and the one that is started runs on this machine."
    for pool in spec.pools:
        if pool.most_workers > pool.min_workers:
            yield (
                f"pool '{pool.name}' stays at {pool.min_workers} workers: nothing here lets it grow"
                f" to {pool.most_workers}."
            )
        if pool.labels != Labels() or pool.resources.role:
            yield (
                f"pool '{pool.name}' has labels or a role's resource, and all of it runs on this"
                " machine."
            )
        if pool.resources.gpus:
            yield (
                f"pool '{pool.name}' wants {pool.resources.gpus:g} GPUs for each worker, and none"
                " is set aside: its workers share what there is."
            )
    num_threads = sum(pool.min_workers * pool.num_threads for pool in spec.pools)
    if num_threads > num_cpus():
        yield (
            f"the workers have {num_threads} threads, and this machine {num_cpus()} cores: every"
            " step waits for others."
        )


def _pool_plan(pool: WorkerPool, model: ModelSpec) -> PoolPlan:
    num_blocks = pool.num_blocks or DEFAULT_BLOCKS
    if pool.kv_pool_bytes is not None:
        block_bytes = _pool_bytes(pool, model, 1)
        num_blocks = pool.kv_pool_bytes // block_bytes
        if not num_blocks:
            raise ConfigError(
                f"The KV pool of '{pool.name}' has {pool.kv_pool_bytes} bytes, and one block takes"
                f" {block_bytes}: give more as its 'kvPool'."
            )
    pool_bytes = _pool_bytes(pool, model, num_blocks)
    config = {name: getattr(pool, name) for name in _OF_WORKERS}
    return PoolPlan(
        name=pool.name,
        part=Part(pool.role),
        num=pool.min_workers,
        config={**config, "num_blocks": num_blocks},
        pool_bytes=pool_bytes if pool.device == "cpu" else 0,
    )


def _pool_bytes(pool: WorkerPool, model: ModelSpec, num_blocks: int) -> int:
    layout = model.kv_layout(num_blocks=num_blocks, block_size=pool.block_size, dtype=pool.kv_dtype)
    return layout.pool_bytes


def _absolute_files(folder: Path, files: TlsFiles | None) -> TlsFiles | None:
    return files and TlsFiles(
        certificate=(folder / files.certificate).absolute(),
        key=(folder / files.key).absolute(),
        client_ca=_absolute(folder, files.client_ca),
    )


def _absolute(folder: Path, path: Path | None) -> Path | None:
    """Leaves symlinks unresolved: one may be swapped."""
    return None if path is None else (folder / path).absolute()
