"""`penstock up` and `penstock down`: a whole cluster on the machines of a running Ray."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cluster.addresses import Endpoint, is_loopback, is_loopback_address
from cluster.document.keys import yaml_text
from deploy.cluster_file.document import ClusterDocument
from deploy.cluster_file.kind import CLUSTER
from deploy.down import take_down
from deploy.placed import PlacedState
from deploy.placement import Wanted, staffed, wanted
from deploy.plan import Part
from deploy.ready import until_ready
from deploy.served import until_served
from deploy.up import bring_up
from penstock.cli import options
from penstock.cli.cluster_options import weights_of
from penstock.cli.exit_codes import ExitCode
from penstock.cli.front_door import insecure_text
from penstock.cli.output import announce, fail, json_line, say, warn, write_json
from penstock.cli.placed_notes import PlacedNote, forget, leave


def up(
    file: Annotated[
        Path, typer.Option("--file", "-f", metavar="FILE", help="The cluster's description.")
    ],
    ray: options.Ray = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Until all of it serves; says what it waits for.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Replace all that runs, one after the other.")
    ] = False,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", min=0, help="Seconds to wait, for each that is replaced too. Default: 300."
        ),
    ] = 300.0,
    json: options.Json = False,
) -> None:
    """Bring a cluster up on the machines of a running Ray, as its file says.

    What runs as the file says, and is of this release, stays; what differs is drained and replaced,
    one after the other: the next when all routers use the one before.

    Example: penstock up -f cluster.yaml --wait
    """
    document = CLUSTER.load(file)
    for sentence in CLUSTER.risks(document):
        warn(sentence)
    possible = wanted(document, file.parent, described=weights_of(document.spec, described=True))
    from deploy.ray_door import connected  # it loads Ray

    with connected(ray) as found:
        running = {group.name for group in found.groups(document.metadata.name)}
        everything = staffed(possible, document.spec.pools, running)
        done = bring_up(
            found, everything, document.spec, timeout_s=timeout, say=say, restart=restart
        )
        if not (done.start or done.change or done.stop):
            say("Nothing is to be changed.")
        if not wait:
            say("Ray has been told; --wait, also later, says how far it is.")
            return
        states = until_ready(found, everything, timeout_s=timeout, say=say)
    routers = [states[each.name] for each in everything if each.order.part is Part.ROUTER]
    _serve(document, everything, routers, timeout, ray=found.address)
    announce(_ready(document, states, routers, as_json=json))


def _serve(
    document: ClusterDocument,
    everything: Sequence[Wanted],
    routers: Sequence[PlacedState],
    timeout_s: float,
    *,
    ray: str,
) -> None:
    config = everything[0].order.config
    secrets_file = Path(config["secrets_file"])
    workers = [each.name for each in everything if each.order.part.is_worker]
    internal = tuple(each.internal for each in routers)
    if secrets_file.exists():
        until_served(internal, workers, secrets_file, timeout_s)
    note = PlacedNote(
        name=document.metadata.name,
        model=config["model"],
        routers=tuple(each.address for each in routers),
        internal=internal,
        secrets_file=str(secrets_file),
        certificate=everything[0].order.config.get("tls", {}).get("certificate", ""),
        ray=ray,
    )
    try:
        leave(note, yaml_text(CLUSTER.effective(document)))
    except OSError as error:
        warn(f"other commands do not find this cluster by themselves: {error}.")


def _ready(
    document: ClusterDocument,
    states: dict[str, PlacedState],
    routers: Sequence[PlacedState],
    *,
    as_json: bool,
) -> str:
    name, doors = document.metadata.name, [each.address for each in routers]
    internal = [each.internal for each in routers]
    if as_json:
        processes = {
            each: {"address": state.address, "machine": state.machine, "pid": state.pid}
            for each, state in states.items()
        }
        value = {"ready": True, "cluster": name, "routers": doors, "internal": internal}
        return json_line({**value, "processes": processes})
    named = document.spec.routers.advertise
    others = [f"for others at {Endpoint(named, Endpoint.parse(doors[0]).port)}"] if named else []
    is_open = any(Endpoint.parse(each).is_open_to_others for each in doors)
    asks_keys, tls = document.spec.routers.keys_file is not None, document.spec.routers.tls
    lacks = insecure_text(" and ".join(doors), asks_keys=asks_keys, tls=tls) if is_open else ""
    insecure = [lacks] if lacks else []
    where = " and ".join(map(_door_text, routers))
    return "\n".join([f"{name} is ready at {where}", *others, *insecure, ""])


def _door_text(router: PlacedState) -> str:
    """Tells where clients come in; one on loopback is for its own machine."""
    if is_loopback_address(router.address) and not is_loopback(router.machine):
        return f"{router.address} of {router.machine} alone"
    return router.address


def down(
    name: Annotated[
        str | None, typer.Argument(help="The cluster. Default: the one that this Ray has.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", metavar="FILE", help="That names the cluster. Default: none."),
    ] = None,
    ray: options.KnownRay = None,
    now: Annotated[
        bool, typer.Option("--now", help="At once: answers in progress are cut off.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Drain a cluster that `penstock up` started, and take all of it away.

    Example: penstock down chat
    """
    if name and file:
        fail("Give the cluster's name or '--file'.", ExitCode.USAGE)
    if file:
        name = CLUSTER.load(file).metadata.name
    from penstock.cli.on_ray import ray_with  # it loads Ray

    with ray_with(name, ray) as (found, name):
        take_down(found, name, drain_s=0.0 if now else None, say=say)
    forget(name)
    if json:
        write_json({"stopped": name})
    else:
        say(f"'{name}' is gone.")
