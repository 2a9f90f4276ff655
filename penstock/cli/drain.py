"""`penstock drain | undrain | flip`: one worker taken out of service, put back, or given the other
role. What is in flight there ends in time or goes on elsewhere: no request fails of it."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cluster.types import Role
from cluster.worker_codec import ROLES
from penstock.cli import options
from penstock.cli.cluster_calls import ask_cluster
from penstock.cli.exit_codes import ExitCode
from penstock.cli.local import find_cluster
from penstock.cli.messages import plain
from penstock.cli.output import fail, say, write_json
from penstock.cli.status import drain_text, fetch_status
from penstock.v1 import worker_pb2 as pb

TELL_S = 10.0  # its router first asks others whether they stay: one that hangs takes its time
LOOK_S = 0.2  # between two looks at the status
SPARE_S = 15.0  # beyond the drain's own bound, which the worker keeps


Worker = Annotated[str, typer.Argument(metavar="WORKER", help="As 'penstock status' names it.")]
Wait = Annotated[bool, typer.Option("--wait", help="Until it is done.")]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        min=0,
        help="Seconds for what is in flight; then it goes on elsewhere. Default: its drain_s.",
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Though it is the last decode worker that serves.")
]


def drain(
    worker: Worker,
    wait: Wait = False,
    timeout: Timeout = None,
    force: Force = False,
    address: options.Address = None,
    secrets_file: options.SecretsFile = None,
    json: options.Json = False,
) -> None:
    """Take a worker out of service; it stays, idle, until it is told to serve or to end.

    Nothing new is sent there. Answers in flight may end within the timeout and go on at another
    worker afterwards. Exits 6 when it has not drained in time.

    Example: penstock drain decode-1 --wait
    """
    where, secrets = find_cluster(address, secrets_file)
    asked = _drain_request(worker, timeout, force=force)
    told = _tell(asked, where, secrets)
    if wait:
        _until(_is_drained, told, worker, where, secrets)
    _report(f"'{worker}' {'has drained' if wait else 'drains'}.", worker, told, json=json)


def undrain(
    worker: Worker,
    address: options.Address = None,
    secrets_file: options.SecretsFile = None,
    json: options.Json = False,
) -> None:
    """Have a worker that drains, or has drained, serve again.

    Example: penstock undrain decode-1
    """
    where, secrets = find_cluster(address, secrets_file)
    request = pb.UndrainRequest(worker_id=worker)
    told: pb.UndrainResponse = ask_cluster("Undrain", request, where, secrets)
    _report(f"'{worker}' serves again.", worker, told, json=json)


def flip(
    worker: Worker,
    to: Annotated[Role, typer.Option("--to", help="The role that it takes.")],
    wait: Wait = False,
    timeout: Timeout = None,
    force: Force = False,
    address: options.Address = None,
    secrets_file: options.SecretsFile = None,
    json: options.Json = False,
) -> None:
    """Drain a worker, and have the same process go on in the other role.

    It keeps its name, its weights and its memory, and forgets what it has cached. Exits 6 when it
    does not serve in time.

    Example: penstock flip decode-1 --to prefill --wait
    """
    where, secrets = find_cluster(address, secrets_file)
    asked = _drain_request(worker, timeout, force=force)
    asked.then = ROLES[to]
    told = _tell(asked, where, secrets)
    if wait:
        _until(partial(_has_flipped, ROLES[to]), told, worker, where, secrets)
    now = "is" if wait else "drains to be"
    _report(f"'{worker}' {now} a {to} worker.", worker, told, json=json)


def _drain_request(worker: str, timeout: float | None, *, force: bool) -> pb.DrainRequest:
    return pb.DrainRequest(worker_id=worker, limit_seconds=timeout, force=force)


def _tell(request: pb.DrainRequest, where: str, secrets: Path) -> pb.DrainResponse:
    told: pb.DrainResponse = ask_cluster("Drain", request, where, secrets, timeout_s=TELL_S)
    return told


def _until(
    is_done: Callable[[pb.WorkerStatus, str], bool],
    told: pb.DrainResponse,
    worker: str,
    where: str,
    secrets: Path,
) -> None:
    """Looks until it is done, and says how it goes. Ends the command when that takes too long."""
    said = ""
    for status in _statuses(worker, told.limit_seconds + SPARE_S, where, secrets):
        if is_done(status, told.incarnation):
            return
        if status.load.HasField("drain") and (text := drain_text(status.load)) != said:
            say(f"{worker}  {text}")
            said = text
        elif said and status.serving:
            fail(f"'{worker}' serves as it did before: its log says why.", ExitCode.FAILURE)
    fail(
        f"'{worker}' is not done {SPARE_S:g} s after its time: see 'penstock status', and its log.",
        ExitCode.DEADLINE,
    )


def _statuses(worker: str, limit_s: float, where: str, secrets: Path) -> Iterator[pb.WorkerStatus]:
    """Gives this worker's status, as it changes, while it is a member."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        for status in fetch_status(where, secrets).workers:
            if status.member.worker.worker_id == worker:
                yield status
        time.sleep(LOOK_S)


def _is_drained(status: pb.WorkerStatus, incarnation: str) -> bool:
    is_it = status.member.worker.incarnation == incarnation
    return is_it and status.load.draining and not status.load.open_calls


def _has_flipped(role: pb.Role, status: pb.WorkerStatus, incarnation: str) -> bool:
    is_another = status.member.worker.incarnation != incarnation
    return is_another and status.serving and status.member.role == role


def _report(
    text: str, worker: str, told: pb.DrainResponse | pb.UndrainResponse, *, json: bool
) -> None:
    if json:
        write_json({"worker": worker, **plain(told)})
    else:
        say(text)
