"""A cluster as a document: what operators write once, and every launcher starts from. Its values
are named as in the files of the processes that they reach.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from cluster.bounds import check_name
from cluster.config import check_range
from cluster.document.keys import meaning
from cluster.document.kind import API_VERSION
from cluster.limits import Limits
from cluster.log import LogFormat, LogLevel
from cluster.tracing import TraceSettings
from cluster.types import Role
from deploy.planner.settings import PlannerSettings
from deploy.weights.origin import Weights
from router.tls.certificate import TlsFiles
from worker.config import MAX_PORT, MAX_THREADS, WorkerConfig

MAX_CLUSTER_BYTES: Final = 64 << 10  # read in under a second, whatever they are
MAX_POOLS: Final = 64
MAX_WORKERS: Final = 1024  # of a cluster
MAX_ROUTERS: Final = 64
MAX_BLOCKS: Final = 1 << 30
KIND: Final = "Cluster"
IN_MEMORY: Final = "memory"
DEFAULT_BLOCKS: Final = 1024
DEFAULT_PORTS: Final = (50051,)
DEFAULT_HTTP_PORT: Final = 8000
_DEVICE: Final = re.compile(r"cpu|cuda(:[0-9]{1,3})?")
_LABEL: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_OF_WORKERS: Final = {each.name: each.default for each in dataclasses.fields(WorkerConfig)}
DEFAULT_BLOCK_SIZE: Final = _OF_WORKERS["block_size"]


def _as_worker(name: str, text: str) -> Any:
    """A field with the default of a worker's own file."""
    return field(default=_OF_WORKERS[name], metadata=meaning(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a launcher sets aside for each worker of a pool."""

    cpus: float | None = field(default=None, metadata=meaning("null: as many as 'numThreads'"))
    gpus: float = field(default=0.0, metadata=meaning("0: none"))
    role: bool = field(
        default=False,
        metadata=meaning("true: 1 of Ray's resource that is called as the role, prefill or decode"),
    )

    def __post_init__(self) -> None:
        if self.cpus is not None:
            check_range(self, "cpus", above=0, at_most=4096)
        check_range(self, "gpus", at_least=0, at_most=1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Says where workers of a pool, or routers, may run; null is anywhere."""

    host: str | None = field(default=None, metadata=meaning("on this machine"))
    rack: str | None = field(default=None, metadata=meaning("in this rack"))
    zone: str | None = field(default=None, metadata=meaning("in this zone"))

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            label = getattr(self, each.name)
            if label is not None and not _LABEL.fullmatch(label):
                raise ValueError(
                    f"'{each.name}' is '{label[:80]}': give letters, digits, '.', '_' and '-', at"
                    " most 63."
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPool:
    """Workers that are alike."""

    name: str = field(metadata=meaning("its workers are called NAME-0, NAME-1, ..."))
    role: Role = field(metadata=meaning("prefill: they compute prompts; decode: they emit tokens"))
    min_workers: int = field(default=1, metadata=meaning("so many are started, and kept"))
    max_workers: int | None = field(
        default=None, metadata=meaning("so many it may grow to; null: it does not grow")
    )
    resources: Resources = field(
        default_factory=Resources, metadata=meaning("set aside for each worker")
    )
    labels: Labels = field(default_factory=Labels, metadata=meaning("where they may run"))
    num_threads: int = _as_worker("num_threads", "of the processor, that compute")
    device: str = _as_worker("device", "cpu, cuda or cuda:NUMBER")
    tensor_parallel: int = field(
        default=1, metadata=meaning("GPUs that share a worker's model; only 1 until they can")
    )
    kv_pool_bytes: int | None = field(
        default=None, metadata=meaning("of each worker's KV pool; null: 'numBlocks' says it")
    )
    num_blocks: int | None = field(
        default=None,
        metadata=meaning(f"of the KV pool, where 'kvPool' does not say it; null: {DEFAULT_BLOCKS}"),
    )
    block_size: int = _as_worker("block_size", "tokens; this or 'hashGrain' divides the other")
    kv_dtype: Literal["float32", "bfloat16", "float16"] = _as_worker("kv_dtype", "of the KV pool")
    attention: Literal["auto", "native", "triton", "torch"] = _as_worker(
        "attention", "auto: native on a CPU, triton on CUDA, where they can be compiled"
    )
    weights: Literal["float32", "bfloat16", "int8"] = _as_worker(
        "weights", "as matrices are kept, on a CPU"
    )
    max_sequences: int = _as_worker("max_sequences", "run together in one step")
    max_waiting: int = _as_worker("max_waiting", "requests that wait for a turn; more are refused")
    max_batch_tokens: int = _as_worker("max_batch_tokens", "of prompts, in one step")
    chunk_s: float = _as_worker("chunk_s", "predicted time of prompt work in one step")

    def __post_init__(self) -> None:
        check_name(self.name, "pool")
        check_range(self, "min_workers", at_least=0, at_most=MAX_WORKERS)
        check_range(self, "num_threads", at_least=1, at_most=MAX_THREADS)
        check_range(self, "block_size", at_least=1, at_most=4096)
        check_range(self, "max_sequences", "max_batch_tokens", at_least=1, at_most=1 << 20)
        check_range(self, "max_waiting", at_least=0, at_most=1 << 20)
        check_range(self, "chunk_s", above=0, at_most=60)
        self._check_size()
        self._check_device()

    @property
    def most_workers(self) -> int:
        return self.min_workers if self.max_workers is None else self.max_workers

    @property
    def workers(self) -> list[str]:
        """All that it may have."""
        return [f"{self.name}-{index}" for index in range(self.most_workers)]

    def _check_size(self) -> None:
        if self.max_workers is not None:
            check_range(self, "max_workers", at_least=0, at_most=MAX_WORKERS)
            if self.max_workers < self.min_workers:
                raise ValueError(
                    f"'max_workers' is {self.max_workers}, less than the {self.min_workers} of"
                    " 'min_workers': give at least as many, or leave it out."
                )
        if self.num_blocks is not None:
            check_range(self, "num_blocks", at_least=1, at_most=MAX_BLOCKS)
        if self.kv_pool_bytes is not None:
            check_range(self, "kv_pool_bytes", at_least=1, at_most=1 << 50)
            if self.num_blocks is not None:
                raise ValueError(
                    "'num_blocks' and 'kv_pool_bytes' are both given: one of them says how large"
                    " the KV pool is."
                )

    def _check_device(self) -> None:
        if not _DEVICE.fullmatch(self.device):
            raise ValueError(
                f"'device' is '{self.device[:80]}': give cpu, cuda, or one of several as cuda:0."
            )
        check_range(self, "tensor_parallel", at_least=1)
        if self.tensor_parallel > 1:
            raise ValueError(
                f"'tensor_parallel' is {self.tensor_parallel}: the engine does not split a model"
                " over several GPUs yet: give 1."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Routers:
    """The front doors: where clients come in."""

    count: int = field(default=1, metadata=meaning("several need a Redis as 'store'"))
    ports: tuple[int, ...] = field(
        default=DEFAULT_PORTS, metadata=meaning("one for all, or one for each; 0: any that is free")
    )
    http_ports: tuple[int, ...] | None = field(
        default=None,
        metadata=meaning(
            f"of OpenAI's clients, likewise; []: none; null: {DEFAULT_HTTP_PORT}, or any that is"
            " free where 'ports' says something"
        ),
    )
    internal_ports: tuple[int, ...] = field(
        default=(50052,),
        metadata=meaning(
            "of calls inside the cluster, beyond loopback or with 'tls'; one for all, or one for"
            " each"
        ),
    )
    bind: str = field(default="127.0.0.1", metadata=meaning("host or address at which they listen"))
    advertise: str | None = field(
        default=None,
        metadata=meaning("host or address by which others reach them; null: as they listen"),
    )
    keys_file: Path | None = field(
        default=None,
        metadata=meaning(
            "callers' API keys, mode 0600, followed ('penstock keys'); null: nobody is asked, and"
            " all are the tenant 'default'"
        ),
    )
    tls: TlsFiles | None = field(
        default=None,
        metadata=meaning(
            "what clients are shown at both doors: files as PEM, the same paths on every machine,"
            " followed; null: they speak no TLS"
        ),
    )
    labels: Labels = field(default_factory=Labels, metadata=meaning("where they may run"))

    def __post_init__(self) -> None:
        check_range(self, "count", at_least=1, at_most=MAX_ROUTERS)
        for name in ("ports", "http_ports", "internal_ports"):
            wrong = [port for port in getattr(self, name) or () if not 0 <= port <= MAX_PORT]
            if wrong:
                raise ValueError(f"'{name}' has {wrong[0]}: give numbers from 0 to {MAX_PORT}.")

    def http_port(self, index: int) -> int | None:
        """Says where one of them hears OpenAI's clients; None: nowhere."""
        if self.http_ports is None:
            return DEFAULT_HTTP_PORT if self.ports == DEFAULT_PORTS else 0
        return (self.http_ports * self.count)[index] if self.http_ports else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Logging:
    """What processes write into their logs, and how."""

    level: LogLevel | None = field(
        default=None, metadata=meaning("request: a line each; null: PENSTOCK_LOG's, else info")
    )
    levels: Mapping[str, LogLevel] = field(
        default_factory=dict, metadata=meaning("by logger, for it and those below")
    )
    format: LogFormat = field(default="text", metadata=meaning("json: an object a line"))


DEFAULT_POOLS: Final = tuple(WorkerPool(name=str(role), role=role) for role in Role)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSpec:
    """All that a cluster is. One model; what runs first, then what it needs."""

    model: str | None = field(
        default=None,
        metadata=meaning(
            "what clients call it; null: as the checkpoint's directory, or the end of its source"
        ),
    )
    checkpoint: Path | None = field(
        default=None,
        metadata=meaning(
            "its directory, the same on every machine; null: the model that ships, or with"
            " 'weights' one in each user's cache"
        ),
    )
    weights: Weights | None = field(
        default=None,
        metadata=meaning("pulled once by each machine that needs it; null: it is there already"),
    )
    pools: tuple[WorkerPool, ...] = field(default=DEFAULT_POOLS, metadata=meaning("the workers"))
    routers: Routers = field(default_factory=Routers, metadata=meaning("where clients come in"))
    insecure: bool = field(
        default=False,
        metadata=meaning(
            "true: others than this machine may come in, also where 'routers.keysFile' asks nobody"
            " who he is; and what passes between machines may be read where 'secretsFile' has no"
            " authority"
        ),
    )
    metrics_bind: str | None = field(
        default="127.0.0.1",
        metadata=meaning(
            "host or address where each process is scraped, at a port that the router tells;"
            " 0.0.0.0: from other machines, too; null: nowhere"
        ),
    )
    transports: tuple[str, ...] = _as_worker("transports", "that KV may travel by")
    require_transport: str | None = _as_worker("require_transport", "this one of them or none")
    hash_grain: int = _as_worker("hash_grain", "tokens of which prefixes are made")
    policy_file: Path | None = field(
        default=None,
        metadata=meaning("routers follow it; null: the defaults, until a policy is applied"),
    )
    store: str = field(
        default=IN_MEMORY,
        metadata=meaning("or redis://HOST:PORT/DB, its password in the secrets file"),
    )
    secrets_file: Path | None = field(
        default=None, metadata=meaning("of the cluster, mode 0600; null: drawn at each start")
    )
    limits: Limits = field(default_factory=Limits, metadata=meaning("of one request"))
    drain_s: float = field(
        default=30.0, metadata=meaning("left to requests in flight when the cluster is told to end")
    )
    log: Logging = field(default_factory=Logging, metadata=meaning("of every process"))
    tracing: TraceSettings = field(
        default_factory=TraceSettings,
        metadata=meaning("which requests are traced, and where to"),
    )
    planner: PlannerSettings = field(
        default_factory=PlannerSettings,
        metadata=meaning("how pools grow and shrink that have a 'maxWorkers'"),
    )

    def __post_init__(self) -> None:
        check_range(self, "hash_grain", at_least=1, at_most=4096)
        check_range(self, "drain_s", at_least=0, at_most=86_400)

    @property
    def grows(self) -> bool:
        """Tells whether there is something for a planner to do."""
        return any(pool.most_workers > pool.min_workers for pool in self.pools)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterMetadata:
    """Which cluster this is."""

    name: str = field(metadata=meaning("keeps clusters apart that share a machine or a Redis"))

    def __post_init__(self) -> None:
        check_name(self.name, "cluster")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterDocument:
    """A valid cluster."""

    api_version: Literal["penstock/v1"] = API_VERSION
    kind: Literal["Cluster"] = KIND
    metadata: ClusterMetadata
    spec: ClusterSpec


def default_cluster() -> ClusterDocument:
    """Gives what `penstock serve` starts where nothing is said."""
    return ClusterDocument(metadata=ClusterMetadata(name="local"), spec=ClusterSpec())
