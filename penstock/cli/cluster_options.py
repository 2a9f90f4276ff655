"""From the flags of `serve` and `demo` to a plan, and what a start says."""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.addresses import Endpoint
from cluster.log import LogFormat, LogLevel
from deploy.launcher import LocalCluster
from deploy.plan import ClusterPlan
from engine.build import EngineChoice, plan_engine
from kv_transfer.doors import DOORS
from penstock.cli.exit_codes import ExitCode
from penstock.cli.front_door import check_host, reach_text
from penstock.cli.local import is_found
from penstock.cli.output import fail, say
from router.policy import Disaggregate
from router.policy_file.document import load_policy

SHIPPED_MODEL = Path(__file__).resolve().parents[2] / "models" / "penstock-tiny"
DEFAULT_BLOCKS = 1024
DEFAULT_BLOCK_SIZE = 16
HASH_GRAIN = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeFlags:
    """What a person said about the cluster to start."""

    model_dir: Path | None = None
    model: str = ""
    prefill: int = 1
    decode: int = 1
    host: str = "127.0.0.1"
    insecure: bool = False
    port: int = 0
    threads: int = 1
    blocks: int = DEFAULT_BLOCKS
    block_size: int = DEFAULT_BLOCK_SIZE
    drain: float = 30.0
    transport: str = ""  # this one or none; empty: the best of the usual ones
    disaggregate: Disaggregate = Disaggregate.AUTO
    policy: Path | None = None  # the router follows this file
    log_level: LogLevel | None = None
    log_format: LogFormat | None = None


def plan_of(flags: ServeFlags) -> ClusterPlan:
    if flags.transport and flags.transport not in DOORS:
        fail(
            f"There is no transport '{flags.transport}': choose from {', '.join(DOORS)}.",
            ExitCode.USAGE,
        )
    check_host(flags.host, insecure=flags.insecure)
    if flags.block_size % HASH_GRAIN and HASH_GRAIN % flags.block_size:
        fail(
            f"'--block-size {flags.block_size}': give what divides {HASH_GRAIN}, or a multiple of"
            " it: so many tokens share a hash.",
            ExitCode.USAGE,
        )
    checkpoint = (flags.model_dir or SHIPPED_MODEL).resolve()
    if not checkpoint.is_dir():
        fail(
            f"There is no checkpoint directory at {checkpoint}: give one with --model-dir.",
            ExitCode.USAGE,
        )
    if flags.policy and flags.disaggregate is not Disaggregate.AUTO:
        fail(
            "Give --disaggregate or --policy: a policy says it as 'spec.placement.disaggregate'.",
            ExitCode.USAGE,
        )
    return ClusterPlan(
        checkpoint=checkpoint,
        model=flags.model,
        num_prefill=flags.prefill,
        num_decode=flags.decode,
        host=flags.host,
        insecure=flags.insecure,
        port=flags.port,
        num_threads=flags.threads,
        num_blocks=flags.blocks,
        block_size=flags.block_size,
        hash_grain=HASH_GRAIN,
        drain_s=flags.drain,
        transports=(flags.transport,) if flags.transport else None,
        require_transport=flags.transport or None,
        log_level=flags.log_level,
        log_format=flags.log_format,
        router={
            "disaggregate": str(flags.disaggregate),
            "policy_file": _checked(flags.policy) if flags.policy else None,
        },
    )


def _checked(policy: Path) -> str:
    """Its absolute path. Raises ConfigError: a router would not start by it."""
    load_policy(policy)
    return str(policy.absolute())  # not resolved: a symlink may be swapped


def make_cluster(flags: ServeFlags) -> LocalCluster:
    """Refuses a checkpoint that no worker could load, before anything starts."""
    plan = plan_of(flags)
    engine = plan_engine(
        EngineChoice(
            kind="torch",
            checkpoint=plan.checkpoint,
            num_blocks=flags.blocks,
            block_size=flags.block_size,
            num_threads=flags.threads,
            device="cpu",
        )
    )
    num_workers = plan.num_prefill + plan.num_decode
    return LocalCluster(plan, say=say, pool_bytes=num_workers * engine.layout.pool_bytes)


def ready_value(cluster: LocalCluster) -> dict[str, Any]:
    """The ready line, for scripts."""
    workers = {name: child.address for name, child in cluster.children.items() if name != "router"}
    return {
        "ready": True,
        "address": cluster.address,
        "listens": cluster.listens,
        "insecure": Endpoint.parse(cluster.listens).is_open_to_others,
        "model": cluster.plan.model_name,
        "workers": workers,
        "run_dir": str(cluster.run_dir),
        "log_dir": str(cluster.log_dir),
        "pid": os.getpid(),
    }


def ready_text(cluster: LocalCluster) -> str:
    """The ready lines, for people."""
    ready = ready_value(cluster)
    workers = "  ".join(f"{name} {address}" for name, address in ready["workers"].items())
    command = command_name()
    where = "" if is_found(cluster.address) else f" -a {cluster.address}"
    return "\n".join(
        [
            f"{ready['model']} is ready at {ready['address']}",
            "",
            f"  gRPC     {ready['address']}  penstock.v1.Inference, health, reflection",
            f"           {reach_text(cluster.listens)}",
            f"  workers  {workers}",
            f"  logs     {cluster.log_dir}",
            "",
            "In another terminal:",
            "",
            f'  {command} generate "What does len do?"{where}',
            f"  {command} chat{where}",
            f"  {command} status{where}",
            "",
            "Ctrl-C drains and stops.",
            "",
        ]
    )


def command_name() -> str:
    """How this command is called from a shell in any directory."""
    return "penstock" if shutil.which("penstock") else str(Path(sys.argv[0]).resolve())
