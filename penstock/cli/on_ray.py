"""A cluster on a Ray, for commands that may also mean one of this machine: they import this when it
is the former, for Ray need not be installed."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster.errors import StartupError
from deploy.doctor.finding import Finding
from deploy.doctor.process_checks import ray_sockets, unseen
from deploy.on_machine import Listener
from deploy.placed_logs import PlacedLogs
from deploy.ray_door import Ray, connected
from penstock.cli.exit_codes import ExitCode
from penstock.cli.log_source import LogSource
from penstock.cli.output import fail, warn
from penstock.cli.placed_notes import placed_as

RAY_VARIABLE = "RAY_ADDRESS"  # Ray's own
LOOK_S = 1.0  # between two looks at logs
ASK_S = 20.0  # for a process to start on each machine, and to look


@contextmanager
def ray_with(cluster: str | None, address: str | None) -> Iterator[tuple[Ray, str]]:
    """And the name of the cluster. Ends the command where none was named, and there is not one.
    Who names one whose note is known need not say where it is."""
    note = placed_as(cluster)
    noted = note.ray if note and not os.environ.get(RAY_VARIABLE) else None
    with connected(address or noted or None) as ray:
        yield ray, cluster or only_cluster(ray)


def only_cluster(ray: Ray) -> str:
    known = sorted({group.cluster for group in ray.groups()})
    if len(known) == 1:
        return known[0]
    if known:
        fail(f"Several clusters run on this Ray: name one of {', '.join(known)}.", ExitCode.USAGE)
    fail(f"No cluster runs on Ray at {ray.address}.", ExitCode.UNREACHABLE)


def logs_of(ray: Ray, cluster: str, *, say: Callable[[str], None] = warn) -> LogSource:
    """`say` hears of each machine whose logs are not to be had."""
    logs = PlacedLogs(ray, cluster, say=say)
    return LogSource(
        where=f"of '{cluster}' on Ray at {ray.address}",
        pieces=logs.pieces,
        is_written=logs.is_written,
        interval_s=LOOK_S,
    )


def findings_of(address: str) -> list[Finding]:
    """Makes the doctor's findings: where Ray listens, on each of its machines."""
    try:
        with connected(address or None) as ray:
            machines = ray.machines()
            replies = ray.look(machines, ASK_S)
            has_token = bool(ray.token)
    except StartupError as error:
        return [unseen("its machines", error.message)]
    found: list[Finding] = []
    for machine in machines:
        reply = replies.get(machine.machine_id)
        if reply is None or reply.fault:
            why = reply.fault if reply else f"no answer within {ASK_S:g} s"
            found.append(unseen(str(machine), why))
        else:
            listeners = [Listener(*each) for each in json.loads(reply.text)["ray"]]
            found += ray_sockets(str(machine), listeners, has_token=has_token)
    return found
