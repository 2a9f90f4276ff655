"""`penstock status`: the pool as the router sees it."""

from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from google.protobuf.json_format import MessageToDict

from cluster.secrets import load_secrets
from penstock.cli import options
from penstock.cli.exit_codes import ExitCode
from penstock.cli.local import find_address, find_secrets
from penstock.cli.output import fail, say, write, write_json, write_table
from penstock.errors import from_rpc_error
from penstock.exchange import channel_options
from penstock.v1 import worker_pb2 as pb
from penstock.v1.worker_pb2_grpc import ClusterStub

COLUMNS = ["worker", "role", "state", "running", "waiting", "blocks free", "cached", "address"]
TIMEOUT_S = 2.0


def status(
    address: options.Address = None,
    secrets_file: Annotated[
        Path | None,
        typer.Option("--secrets-file", help="Of the cluster, when it runs elsewhere."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Show every worker and whether it serves. Exits 8 when one does not."""
    where = find_address(address)
    secrets = find_secrets(secrets_file, where)
    reply = fetch_status(where, secrets)
    _add_missing(reply, secrets)
    if json:
        write_json(_as_json(where, reply))
    else:
        _show(where, reply)
    if not reply.workers or not all(worker.serving for worker in reply.workers):
        raise typer.Exit(ExitCode.UNHEALTHY)


def _add_missing(reply: pb.StatusResponse, secrets_file: Path | None) -> None:
    """A worker that was started here, but that the router has given up, is no less broken."""
    known = {worker.member.worker.worker_id for worker in reply.workers}
    for path in sorted(secrets_file.parent.glob("*-*.yaml") if secrets_file else ()):
        if path.stem not in known:
            worker = reply.workers.add(reason="the router does not hear from it")
            worker.member.worker.worker_id = path.stem


def fetch_status(address: str, secrets_file: Path | None) -> pb.StatusResponse:
    if secrets_file is None:
        fail(
            f"No cluster is known to run at {address} on this machine: start one with 'penstock"
            " serve', or give --address and --secrets-file.",
            ExitCode.UNREACHABLE,
        )
    token = load_secrets(secrets_file).cluster_token
    with grpc.insecure_channel(address, options=channel_options(address)) as channel:
        stub: Any = ClusterStub(channel)
        metadata = (("authorization", f"Bearer {token}"),)
        try:
            reply: pb.StatusResponse = stub.Status(
                pb.StatusRequest(), timeout=TIMEOUT_S, metadata=metadata
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
    return reply


def _role(worker: pb.WorkerStatus) -> str:
    if worker.member.role == pb.ROLE_UNSPECIFIED:
        return worker.member.worker.worker_id.rpartition("-")[0]
    return pb.Role.Name(worker.member.role).removeprefix("ROLE_").lower()


def _state(worker: pb.WorkerStatus) -> str:
    if worker.serving:
        return "serving"
    return f"NOT SERVING: {worker.reason or 'no reason was given'}"


def _show(address: str, reply: pb.StatusResponse) -> None:
    if not reply.workers:
        say(f"The router at {address} has no workers.")
        return
    rows = [
        [
            worker.member.worker.worker_id,
            _role(worker),
            _state(worker),
            str(worker.load.num_running),
            str(worker.load.num_waiting),
            f"{worker.load.num_free_blocks} of {worker.load.num_blocks}",
            str(worker.cached_grains),
            worker.member.worker.address,
        ]
        for worker in reply.workers
    ]
    write_table(COLUMNS, rows)
    write(
        f"router {address} · {reply.requests_in_flight} requests in flight ·"
        f" index {reply.index_grains} grains, {reply.index_bytes / 2**20:.1f} MiB\n"
    )


def _as_json(address: str, reply: pb.StatusResponse) -> dict[str, Any]:
    value = MessageToDict(
        reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return {"address": address, **value}
