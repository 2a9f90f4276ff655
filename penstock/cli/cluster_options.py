"""Makes a plan of the flags of `serve` and `demo`, and a cluster's file; and what a start says."""

import asyncio
import json
import os
import shlex
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.addresses import Endpoint
from cluster.document.keys import yaml_text
from cluster.log import LogFormat, LogLevel
from cluster.types import Role
from deploy.cluster_file.document import ClusterDocument, ClusterSpec, default_cluster
from deploy.cluster_file.kind import CLUSTER
from deploy.cluster_file.local import left_out, local_plan
from deploy.launcher import LocalCluster
from deploy.plan import ClusterPlan
from deploy.weights.kept import hold
from deploy.weights.pulled import pulled
from kv_transfer.doors import DOORS
from penstock.cli.exit_codes import ExitCode
from penstock.cli.front_door import check_host, reach_text, tenants_text
from penstock.cli.local import is_found
from penstock.cli.output import fail, say, warn
from penstock.cli.way_in import name_for
from router.callers.key_file import read_keys
from router.policy import Disaggregate
from router.tls.certificate import TlsFiles, load_certificate

# Of each pool: where there is a file it says them.
_OF_POOLS = ("prefill", "decode", "threads", "blocks", "block_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeFlags:
    """Holds what a person said about the cluster to start; None: nothing."""

    file: Path | None = None  # of the cluster
    model_dir: Path | None = None
    model: str | None = None
    prefill: int | None = None
    decode: int | None = None
    host: str | None = None
    insecure: bool = False
    port: int | None = None
    http_port: int | None = None
    no_http: bool = False
    threads: int | None = None
    blocks: int | None = None
    block_size: int | None = None
    drain: float | None = None
    transport: str | None = None  # this one or none
    disaggregate: Disaggregate | None = None
    policy: Path | None = None  # the router follows this file
    keys: Path | None = None  # and this one, of callers' API keys
    tls_cert: Path | None = None  # clients are shown this one
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    log_level: LogLevel | None = None
    log_format: LogFormat | None = None


def plan_of(flags: ServeFlags) -> ClusterPlan:
    """Makes a plan in which flags go before the file."""
    document = _of_file(flags, flags.file) if flags.file else default_cluster()
    spec = _with_flags(document.spec, flags)
    _check(spec, flags)
    folder = flags.file.parent if flags.file else Path()
    document = replace(document, spec=spec)
    plan = local_plan(document, folder, pulled=weights_of(spec, folder))
    if plan.keys_file is not None:
        read_keys(plan.keys_file)  # what no router could start from is told before any does
    if plan.tls is not None:
        load_certificate(plan.tls)
    said = {"disaggregate": str(flags.disaggregate)} if flags.disaggregate else {}
    return replace(
        plan,
        described=yaml_text(CLUSTER.effective(document)),
        router={**plan.router, **said},
        log_level=flags.log_level or plan.log_level,
        log_format=flags.log_format or plan.log_format,
    )


def _of_file(flags: ServeFlags, file: Path) -> ClusterDocument:
    given = [name for name in _OF_POOLS if getattr(flags, name) is not None]
    if given:
        flag = {"blocks": "num-blocks"}.get(given[0], given[0].replace("_", "-"))
        fail(f"Give '--{flag}' or '--file': there each pool says it.", ExitCode.USAGE)
    document = CLUSTER.load(file)
    for sentence in (*CLUSTER.risks(document), *left_out(document)):
        warn(sentence)
    return document


def _with_flags(spec: ClusterSpec, flags: ServeFlags) -> ClusterSpec:
    here = Path.cwd() if flags.file else Path()  # what a file says is relative to the file
    routers = _told(
        bind=flags.host,
        ports=None if flags.port is None else (flags.port,),
        keys_file=flags.keys and here / flags.keys,
        tls=_tls(flags, here),
    )
    if flags.port is not None:
        routers |= {"count": 1, "internal_ports": (0,), "http_ports": (0,)}
    if flags.http_port is not None or flags.no_http:
        told = () if flags.no_http else (flags.http_port,)
        routers |= {"count": 1, "http_ports": told}
    said = _told(
        checkpoint=flags.model_dir and here / flags.model_dir,
        model=flags.model or None,
        transports=(flags.transport,) if flags.transport else None,
        require_transport=flags.transport or None,
        policy_file=flags.policy and here / flags.policy,
        drain_s=flags.drain,
        insecure=flags.insecure or None,
    )
    workers = _told(num_threads=flags.threads, num_blocks=flags.blocks, block_size=flags.block_size)
    numbers = {"prefill": flags.prefill, "decode": flags.decode}
    return replace(
        spec,
        weights=None if flags.model_dir else spec.weights,
        routers=replace(spec.routers, **routers),
        pools=tuple(
            replace(pool, **workers, **_told(min_workers=numbers[pool.role])) for pool in spec.pools
        ),
        **said,
    )


def _tls(flags: ServeFlags, folder: Path) -> TlsFiles | None:
    """Ends the command where one of them says too little."""
    if flags.tls_cert is None and flags.tls_key is None and flags.tls_client_ca is None:
        return None
    if flags.tls_cert is None or flags.tls_key is None:
        fail("Give --tls-cert and --tls-key, a certificate and its key.", ExitCode.USAGE)
    return TlsFiles(
        certificate=folder / flags.tls_cert,
        key=folder / flags.tls_key,
        client_ca=flags.tls_client_ca and folder / flags.tls_client_ca,
    )


def _told(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _check(spec: ClusterSpec, flags: ServeFlags) -> None:
    """Ends the command where a flag is of no use, in the flag's own words."""
    if flags.transport and flags.transport not in DOORS:
        fail(
            f"There is no transport '{flags.transport}': choose from {', '.join(DOORS)}.",
            ExitCode.USAGE,
        )
    if not any(pool.role is Role.DECODE and pool.min_workers for pool in spec.pools):
        fail(
            "No pool starts with a decode worker, and nothing starts one on one machine: give"
            " 'minWorkers' of 1 or more, or bring it up with 'penstock up'.",
            ExitCode.USAGE,
        )
    if flags.http_port is not None and flags.no_http:
        fail("Give --http-port or --no-http.", ExitCode.USAGE)
    has_keys = spec.routers.keys_file is not None
    check_host(spec.routers.bind, insecure=spec.insecure, has_keys=has_keys)
    size, grain = flags.block_size, spec.hash_grain
    if size and size % grain and grain % size:
        fail(
            f"'--block-size {size}': give what divides {grain}, or a multiple of it: so many tokens"
            " share a hash.",
            ExitCode.USAGE,
        )
    if spec.policy_file and flags.disaggregate not in (None, Disaggregate.AUTO):
        fail(
            "Give --disaggregate or --policy: a policy says it as 'spec.placement.disaggregate'.",
            ExitCode.USAGE,
        )


def make_cluster(flags: ServeFlags) -> LocalCluster:
    """Refuses a checkpoint that no worker could load, before anything starts."""
    return LocalCluster(plan_of(flags), say=say)


def ready_value(cluster: LocalCluster) -> dict[str, Any]:
    """The ready line, for scripts."""
    workers = {name: child.address for name, child in cluster.children.items() if name != "router"}
    return {
        "ready": True,
        "address": cluster.address,
        "listens": cluster.listens,
        "http": cluster.http or None,
        "advertise": _advertised(cluster),
        "insecure": Endpoint.parse(cluster.listens).is_open_to_others and not _asks(cluster),
        "asks_keys": _asks_keys(cluster),
        "tls": cluster.plan.tls is not None,
        "internal": cluster.internal,
        "model": cluster.plan.model_name,
        "workers": workers,
        "run_dir": str(cluster.run_dir),
        "log_dir": str(cluster.log_dir),
        "pid": os.getpid(),
    }


def _asks(cluster: LocalCluster) -> bool:
    """Tells whether callers show who they are: by a key, or a certificate."""
    return _asks_keys(cluster) or bool(cluster.plan.tls and cluster.plan.tls.client_ca)


def _asks_keys(cluster: LocalCluster) -> bool:
    return cluster.plan.keys_file is not None


def _advertised(cluster: LocalCluster) -> str:
    """Says how others than this machine reach it, as far as that was told."""
    host = cluster.plan.advertise
    return str(Endpoint(host, Endpoint.parse(cluster.listens).port)) if host else cluster.address


def ready_text(cluster: LocalCluster) -> str:
    """The ready lines, for people."""
    ready = ready_value(cluster)
    workers = "  ".join(f"{name} {address}" for name, address in ready["workers"].items())
    command, where_else = command_name(), ready["advertise"]
    where = "" if is_found(cluster.address) else f" -a {cluster.address}"
    asked = cluster.plan.tls is not None and cluster.plan.tls.client_ca is not None
    shown = " --cert-file CLIENT.pem --key-file CLIENT.key" if asked else ""
    return "\n".join(
        [
            f"{ready['model']} is ready at {ready['address']}",
            "",
            f"  gRPC     {ready['address']}  penstock.v1.Inference, health, reflection",
            *([f"           for others {where_else}"] if where_else != cluster.address else []),
            *_http_lines(cluster),
            f"           {_reach(cluster)}",
            f"           {tenants_text(asks_keys=_asks_keys(cluster))}",
            f"  workers  {workers}",
            f"  logs     {cluster.log_dir}",
            "",
            f"In another terminal{', with PENSTOCK_API_KEY set' * _asks_keys(cluster)}:",
            "",
            f'  {command} generate "What does len do?"{where}{shown}',
            f"  {command} chat{where}{shown}",
            f"  {command} status{where}",
            "",
            *_curl_lines(cluster),
            "Ctrl-C drains and stops.",
            "",
        ]
    )


def _reach(cluster: LocalCluster) -> str:
    return reach_text(cluster.listens, asks_keys=_asks_keys(cluster), tls=cluster.plan.tls)


def _http_lines(cluster: LocalCluster) -> list[str]:
    if not cluster.http:
        return []
    scheme = "http" if cluster.plan.tls is None else "https"
    return [f"  HTTP     {scheme}://{cluster.http}/v1  as OpenAI's clients speak it"]


def _curl_lines(cluster: LocalCluster) -> list[str]:
    """A request to paste."""
    if not cluster.http:
        return []
    chat = {
        "model": cluster.plan.model_name,
        "messages": [{"role": "user", "content": "What does len do?"}],
    }
    key = ['    -H "authorization: Bearer $PENSTOCK_API_KEY" \\'] if _asks_keys(cluster) else []
    where = f"http://{cluster.http}" if cluster.plan.tls is None else _secured(cluster)
    return [
        f"  curl {where}/v1/chat/completions -H 'content-type: application/json' \\",
        *key,
        f"    -d {shlex.quote(json.dumps(chat))}",
        "",
    ]


def _secured(cluster: LocalCluster) -> str:
    """The way in under TLS, as curl takes it: by a name that the certificate has."""
    assert cluster.plan.tls is not None
    shown, (host, port) = cluster.plan.tls, Endpoint.parse(cluster.http)
    flags = ["--cacert", str(shown.certificate)]
    if shown.client_ca is not None:
        flags += ["--cert", "CLIENT.pem", "--key", "CLIENT.key"]
    name = name_for(shown.certificate, host)
    if name is not None:
        flags += ["--resolve", f"{name}:{port}:{host}"]
    return f"{shlex.join(flags)} https://{Endpoint(name or host, port)}"


def command_name() -> str:
    """Says how this command is called from a shell in any directory."""
    if shutil.which("penstock"):
        return "penstock"
    called = Path(sys.argv[0]).resolve()
    return f"{sys.executable} -m penstock" if called.name == "__main__.py" else str(called)


def weights_of(spec: ClusterSpec, folder: Path = Path(), *, described: bool = False) -> Path | None:
    """Finds where the weights are on this machine now; None where the file has none pulled.
    `folder`: where relative paths begin; `described`: only what says what they are; others are
    kept as long as this process lives. Raises WeightsError."""
    if spec.weights is None:
        return None
    directory = str((folder / spec.checkpoint).absolute()) if spec.checkpoint else ""
    if not described:
        hold(spec.weights, directory)
    return asyncio.run(pulled(spec.weights, directory, say=say, is_described=described))
