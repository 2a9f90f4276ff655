"""Plans what a cluster consists of: one description in, one configuration per process out. Starts
nothing and touches no file."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from cluster.addresses import Endpoint, is_loopback
from cluster.log import LogFormat, LogLevel
from deploy.planner.settings import PlannerSettings
from router.tls.certificate import TlsFiles

MODULES = {
    "router": "router",
    "prefill": "prefill_worker",
    "decode": "decode_worker",
    "planner": "deploy.planner",
}


class Part(StrEnum):
    ROUTER = "router"
    PREFILL = "prefill"
    DECODE = "decode"
    PLANNER = "planner"

    @property
    def is_worker(self) -> bool:
        return self in (Part.PREFILL, Part.DECODE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessPlan:
    """One process: what to run, and the configuration that it is given."""

    name: str
    part: Part
    command: tuple[str, ...]
    config: Mapping[str, Any]
    environment: Mapping[str, str] | None = None  # None: the launcher's


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """Workers of one role that are alike."""

    name: str
    part: Part
    num: int
    config: Mapping[str, Any]  # merged into that of each
    pool_bytes: int = 0  # of each one's KV, where that lies in a file

    @property
    def workers(self) -> list[str]:
        return [f"{self.name}-{index}" for index in range(self.num)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlan:
    """A cluster on one machine. None is the process's own default."""

    described: str = ""  # as a cluster's file, for who looks later; empty: there was none
    name: str = ""  # keeps apart what clusters of one machine or one Redis leave there
    checkpoint: Path
    model: str = ""  # empty: the directory's name
    num_prefill: int = 1
    num_decode: int = 1
    pools: tuple[PoolPlan, ...] = ()  # empty: one of either role, of so many workers
    host: str = "127.0.0.1"
    advertise: str = ""  # by which others reach the host; empty: by itself
    insecure: bool = False  # others than this machine may reach the host
    internal_port: int = 0  # of calls of the cluster, where clients' are apart; 0: any free one
    port: int = 0  # 0: any free one
    http_port: int | None = 0  # of OpenAI's clients; 0: any free one; None: they have none
    metrics_bind: str | None = "127.0.0.1"  # host where each process is scraped; None: nowhere
    store: str | None = None  # the URL of a Redis
    secrets_file: Path | None = None  # None: drawn at the start
    keys_file: Path | None = None  # of callers' API keys; None: nobody is asked
    tls: TlsFiles | None = None  # that clients are shown; None: they come in in clear text
    num_threads: int | None = None
    num_blocks: int | None = None
    block_size: int | None = None
    hash_grain: int | None = None
    transports: tuple[str, ...] | None = None
    require_transport: str | None = None  # every pair uses this one or none
    drain_s: float = 30.0  # requests in flight may end
    log_level: LogLevel | None = None
    log_levels: Mapping[str, LogLevel] = field(default_factory=dict)
    log_format: LogFormat | None = None
    # For what has no flag: merged into the configuration of the router, of all workers, of
    # prefill workers, of decode workers.
    router: Mapping[str, Any] = field(default_factory=dict)
    worker: Mapping[str, Any] = field(default_factory=dict)
    prefill: Mapping[str, Any] = field(default_factory=dict)
    decode: Mapping[str, Any] = field(default_factory=dict)
    commands: Mapping[Part, tuple[str, ...]] = field(default_factory=dict)

    @property
    def model_name(self) -> str:
        return self.model or self.checkpoint.resolve().name

    @property
    def all_pools(self) -> tuple[PoolPlan, ...]:
        return self.pools or (
            PoolPlan(name="prefill", part=Part.PREFILL, num=self.num_prefill, config=self.prefill),
            PoolPlan(name="decode", part=Part.DECODE, num=self.num_decode, config=self.decode),
        )

    @property
    def is_open(self) -> bool:
        """Tells whether its front door is for others than this machine, too."""
        return not is_loopback(self.host)

    @property
    def pool_bytes(self) -> int:
        """Counts the bytes of all workers' KV."""
        return sum(pool.num * pool.pool_bytes for pool in self.all_pools)

    def router_plan(
        self,
        secrets_file: Path,
        port: int,
        internal_port: int | None = None,
        http_port: int | None = None,
    ) -> ProcessPlan:
        """The ports: where a router that is started again was; None: as planned."""
        internal = Endpoint(
            self.host, self.internal_port if internal_port is None else internal_port
        )
        http = self.http_port if http_port is None else http_port
        config = {
            "cluster": self.name or None,
            "checkpoint": str(self.checkpoint),
            "model": self.model_name,
            "address": str(Endpoint(self.host, port)),
            "internal": str(internal) if self.is_open or self.tls else None,
            "store": self.store,
            "secrets_file": str(secrets_file),
            "keys_file": str(self.keys_file) if self.keys_file else None,
            "tls": _texts(self.tls),
            "hash_grain": self.hash_grain,
            "insecure": self.insecure or None,
            "drain_s": self.drain_s,
            # A router that is started again goes on with what it was told.
            "policy_state": str(secrets_file.with_name("policy-state.json")),
            **self.router,
        }
        plan = self._serving("router", Part.ROUTER, config)
        # Said even where it is nowhere: a router that is told nothing has a door.
        address = None if http is None else str(Endpoint(self.host, http))
        return replace(plan, config={"http": address, **plan.config})

    def worker_plans(self, secrets_file: Path, run_dir: Path, router: str) -> list[ProcessPlan]:
        shared = {
            "cluster": self.name or None,
            "checkpoint": str(self.checkpoint),
            "model": self.model_name,
            "address": "127.0.0.1:0",
            "insecure": self.insecure or None,
            "router": self.store or router,
            "secrets_file": str(secrets_file),
            "run_dir": str(run_dir),
            "num_blocks": self.num_blocks,
            "block_size": self.block_size,
            "hash_grain": self.hash_grain,
            "num_threads": self.num_threads,
            "transports": list(self.transports) if self.transports else None,
            "require_transport": self.require_transport,
            "drain_s": self.drain_s,
            **self.worker,
        }
        return [
            self._serving(name, pool.part, {**shared, **pool.config, "worker_id": name})
            for pool in self.all_pools
            for name in pool.workers
        ]

    def planner_plan(
        self,
        secrets_file: Path,
        pools: Sequence[Mapping[str, Any]],
        settings: PlannerSettings,
    ) -> ProcessPlan:
        config = {
            "cluster": self.name,
            "store": self.store,
            "drain_s": self.drain_s,
            "secrets_file": str(secrets_file),
            "pools": list(pools),
            "settings": asdict(settings),
        }
        return self._process(str(Part.PLANNER), Part.PLANNER, config)

    def _serving(self, name: str, part: Part, config: Mapping[str, Any]) -> ProcessPlan:
        plan = self._process(name, part, config)
        bind = self.metrics_bind
        address = None if bind is None else str(Endpoint(bind, 0))
        return replace(plan, config={"metrics": address, **plan.config})

    def _process(self, name: str, part: Part, config: Mapping[str, Any]) -> ProcessPlan:
        default = (sys.executable, "-P", "-m", MODULES[part])
        said = {
            "log_level": self.log_level,
            "log_levels": dict(self.log_levels) or None,
            "log_format": self.log_format,
            **config,
        }
        return ProcessPlan(
            name=name,
            part=part,
            command=self.commands.get(part, default),
            config={key: value for key, value in said.items() if value is not None},
        )


def _texts(files: TlsFiles | None) -> dict[str, str] | None:
    """As the router's own file names them."""
    if files is None:
        return None
    return {key: str(path) for key, path in asdict(files).items() if path is not None}
