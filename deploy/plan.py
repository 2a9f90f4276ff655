"""What a cluster consists of: one description in, one configuration per process out. Starts
nothing and touches no file."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from cluster.addresses import Endpoint
from cluster.log import LogFormat, LogLevel

MODULES = {"router": "router", "prefill": "prefill_worker", "decode": "decode_worker"}


class Part(StrEnum):
    ROUTER = "router"
    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessPlan:
    """One process: what to run, and the configuration that it is given."""

    name: str
    part: Part
    command: tuple[str, ...]
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlan:
    """A cluster on one machine. None is the process's own default."""

    checkpoint: Path
    model: str = ""  # empty: the directory's name
    num_prefill: int = 1
    num_decode: int = 1
    host: str = "127.0.0.1"
    insecure: bool = False  # others than this machine may reach the host
    port: int = 0  # 0: any free one
    num_threads: int | None = None
    num_blocks: int | None = None
    block_size: int | None = None
    hash_grain: int | None = None
    transports: tuple[str, ...] | None = None
    require_transport: str | None = None  # every pair uses this one or none
    drain_s: float = 30.0  # requests in flight may end
    log_level: LogLevel | None = None
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

    def router_plan(self, secrets_file: Path, port: int) -> ProcessPlan:
        config = {
            "checkpoint": str(self.checkpoint),
            "model": self.model_name,
            "address": str(Endpoint(self.host, port)),
            "secrets_file": str(secrets_file),
            "hash_grain": self.hash_grain,
            "insecure": self.insecure or None,
            "drain_s": self.drain_s,
            # A router that is started again goes on with what it was told.
            "policy_state": str(secrets_file.with_name("policy-state.json")),
            **self.router,
        }
        return self._process("router", Part.ROUTER, config)

    def worker_plans(self, secrets_file: Path, run_dir: Path, router: str) -> list[ProcessPlan]:
        shared = {
            "checkpoint": str(self.checkpoint),
            "model": self.model_name,
            "address": "127.0.0.1:0",
            "router": router,
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
        own = {Part.PREFILL: self.prefill, Part.DECODE: self.decode}
        named = [(f"prefill-{i}", Part.PREFILL) for i in range(self.num_prefill)]
        named += [(f"decode-{i}", Part.DECODE) for i in range(self.num_decode)]
        return [
            self._process(name, part, {**shared, **own[part], "worker_id": name})
            for name, part in named
        ]

    def _process(self, name: str, part: Part, config: Mapping[str, Any]) -> ProcessPlan:
        default = (sys.executable, "-P", "-m", MODULES[part])
        said = {"log_level": self.log_level, "log_format": self.log_format, **config}
        return ProcessPlan(
            name=name,
            part=part,
            command=self.commands.get(part, default),
            config={key: value for key, value in said.items() if value is not None},
        )
