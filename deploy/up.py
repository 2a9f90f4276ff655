"""Brings a cluster up on a running Ray: what is wrong is told before anything starts, what runs as
it should stays, what differs is drained and placed anew. Waits, if asked, until all of it serves.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from cluster.errors import ConfigError, StartupError
from deploy.cluster_file.document import ClusterSpec
from deploy.down import stop
from deploy.on_machine import Needs
from deploy.placement import (
    PLANNER,
    Group,
    Machine,
    Reply,
    Wanted,
    impossible,
    most_bound_first,
    spread,
    usable,
)
from deploy.plan import Part
from deploy.ready import Say, states
from deploy.reconcile import Placing, Steps, differences, divides, in_turn, steps
from deploy.rolling import Rolling
from deploy.ways import check_ways
from penstock import __version__

if TYPE_CHECKING:  # it loads Ray
    from deploy.ray_door import Ray

CHECK_S: Final = 60.0  # for a process to start on each machine, and to look


def bring_up(
    ray: "Ray",
    wanted: Sequence[Wanted],
    spec: ClusterSpec,
    *,
    timeout_s: float,
    say: Say,
    restart: bool = False,
) -> Steps:
    """Returns what it did, as soon as Ray has been told; whom it replaces it has seen serve.
    `restart`: it replaces all that runs. Raises ConfigError and StartupError."""
    cluster, machines = wanted[0].order.cluster, ray.machines()
    check_ways([each.order for each in wanted], machines)
    groups = {group.name: group for group in ray.groups(cluster)}
    todo = _steps(wanted, groups, restart=restart)
    before = _orders(ray, cluster, todo.change)
    _tell_changes(todo, before, "" if restart else "what is set aside for it", say)
    if (todo.start or todo.change or todo.stop) and PLANNER in groups:
        # It would see processes go, and have others placed for them: it begins anew at the end.
        stop(ray, [groups.pop(PLANNER)], say=say)
        todo = _steps(wanted, groups, restart=restart)
    planners = [each for each in todo.start if each.name == PLANNER]
    if anew := [*todo.start, *todo.change]:
        if lacking := impossible(anew, [*machines, *ray.machine_types()]):
            raise StartupError("\n".join(lacking))
        _check_machines(ray, anew, spec.store, machines)
    stop(ray, [groups[name] for name in todo.stop], say=say)
    actors = ray.actors(cluster)
    for each in todo.keep:
        if each.name not in actors:
            ray.ensure(each, groups[each.name])
    _place(ray, [each for each in todo.start if each not in planners], list(groups.values()))
    if todo.change:
        rolling = Rolling(ray, wanted, timeout_s=timeout_s, say=say)
        for each in in_turn(todo.change, before, rolling.serving):
            rolling.replace(each, groups[each.name])
    _place(ray, planners, [])
    return todo


def _steps(wanted: Sequence[Wanted], groups: Mapping[str, Group], *, restart: bool) -> Steps:
    running = [Placing(name=each.name, digest=each.digest) for each in groups.values()]
    return steps(wanted, running, restart=restart)


def _orders(ray: "Ray", cluster: str, wanted: Sequence[Wanted]) -> dict[str, str]:
    """Gives what each was told, as JSON, of those that run."""
    names = [each.name for each in wanted]
    return {name: state.order for name, state in states(ray, cluster, names).items()}


def _tell_changes(todo: Steps, before: Mapping[str, str], otherwise: str, say: Say) -> None:
    """`otherwise`: what differs where orders do not. Raises ConfigError where what runs and what is
    wanted could not be one cluster."""
    for each in todo.change:
        if each.name not in before:
            continue  # it does not run yet: nobody minds
        after = each.order.as_json()
        if apart := divides(before[each.name], after):
            raise ConfigError(
                f"{each.name} runs with other values, which all of a cluster share"
                f" ({'; '.join(apart)}): take it down first, with 'penstock down"
                f" {each.order.cluster}'."
            )
        what = "; ".join(differences(before[each.name], after)) or otherwise
        if each.name == PLANNER:  # one of them is a list of what all pools want
            what = "what it is told of the pools"
        if what:
            say(f"{each.name} differs: {what}")


def _check_machines(
    ray: "Ray", wanted: Sequence[Wanted], store: str, machines: Sequence[Machine]
) -> None:
    """Every machine that may come to run a part has what all need. Raises StartupError."""
    configs = [each.order.config for each in wanted]
    paths = [
        each.get(key) for each in configs for key in ("checkpoint", "policy_file", "keys_file")
    ]
    paths += [path for each in configs for path in each.get("tls", {}).values()]
    needs = Needs(
        version=__version__,
        secrets_file=configs[0]["secrets_file"],
        store=store,
        paths=tuple(dict.fromkeys(path for path in paths if path)),
        pool_bytes=max(each.pool_bytes for each in wanted),
    )
    asked = usable(wanted, machines)
    replies = ray.missing(asked, needs, CHECK_S)
    told = [line for each in asked for line in _lacks(each, replies.get(each.machine_id))]
    if told:
        raise StartupError("\n".join(told))


def _lacks(machine: Machine, reply: Reply | None) -> list[str]:
    if reply is None:
        return [f"{machine} does not answer within {CHECK_S:g} s: no process starts there."]
    if reply.fault:
        return [f"{machine} cannot run Penstock {__version__}: {reply.fault}"]
    return [f"{machine} {sentence}" for sentence in json.loads(reply.text)]


def _place(ray: "Ray", wanted: Sequence[Wanted], groups: Sequence[Group]) -> None:
    """Routers apart from each other, as far as there are machines."""
    routers = [each for each in wanted if each.order.part is Part.ROUTER]
    known = {group.machine_id for group in groups if group.is_router}
    machines = ray.machines()
    near = spread(routers, machines, taken=known)
    for each in most_bound_first(wanted, machines):
        ray.place(each, near=near.get(each.name))
