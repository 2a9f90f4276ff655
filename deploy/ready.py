"""Says how the processes of a cluster on a running Ray stand: asked of their actors, told in words,
waited for."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from cluster.errors import StartupError
from deploy.placed import PlacedState
from deploy.placement import Group, Machine, Reply, Wanted

if TYPE_CHECKING:  # it loads Ray
    from deploy.ray_door import Ray

ASK_S: Final = 2.0
TELL_S: Final = 5.0  # who is asked once
LOOK_S: Final = 0.3  # between two looks at what starts

Say = Callable[[str], None]


def until_ready(
    ray: "Ray", wanted: Sequence[Wanted], *, timeout_s: float, say: Say
) -> dict[str, PlacedState]:
    """Returns how all are once all of them serve. Raises StartupError, which says for what each
    waits."""
    cluster, began = wanted[0].order.cluster, time.monotonic()
    told: dict[str, str] = {}
    since: dict[str, float] = {}
    while True:
        ready, lines = _look(ray, cluster, wanted)
        actors = ray.actors(cluster)
        if given_up := [name for name in lines if name not in actors]:
            raise StartupError(
                "Ray could not start them, and tries no more: "
                + "; ".join(f"{name} {told.get(name, '')}" for name in given_up)
            )
        for name, line in lines.items():
            if told.get(name) != line:
                since[name] = time.monotonic()
                told[name] = line
                say(f"{name} {line}")
        if len(ready) == len(wanted):
            return ready
        if time.monotonic() - began > timeout_s:
            raise StartupError(_unready(lines, ready, since, timeout_s))
        time.sleep(LOOK_S)  # Ray tells nobody when something becomes ready


def _unready(
    lines: dict[str, str], ready: dict[str, PlacedState], since: dict[str, float], timeout_s: float
) -> str:
    now = time.monotonic()
    waiting = [
        f"  {name} {line} (for {now - since[name]:.0f} s)"
        for name, line in lines.items()
        if name not in ready
    ]
    return "\n".join([f"Not all of it serves after {timeout_s:g} s; it goes on:", *waiting])


def _look(
    ray: "Ray", cluster: str, wanted: Sequence[Wanted]
) -> tuple[dict[str, PlacedState], dict[str, str]]:
    """Finds who is ready; and a line for each."""
    groups = {group.name: group for group in ray.groups(cluster)}
    machines = {machine.machine_id: machine for machine in ray.machines()}
    placed = [each.name for each in wanted if each.name in groups and groups[each.name].machine_id]
    replies = ray.ask(cluster, placed, "state", timeout_s=ASK_S)
    ready, lines = {}, {}
    for each in wanted:
        group, reply = groups.get(each.name), replies.get(each.name)
        state = _state(reply)
        is_current = state is not None and state.order == each.order.as_json()
        if state and is_current and state.address:
            ready[each.name] = state
        lines[each.name] = _line(each, group, reply, machines)
    return ready, lines


def _line(
    wanted: Wanted, group: Group | None, reply: Reply | None, machines: dict[str, Machine]
) -> str:
    """Says how it stands with one process, in words."""
    if group is None:
        return "has no place: somebody else took it away"
    if not group.machine_id:
        if group.is_impossible:
            return f"waits for a machine that has {wanted.needs}: there is none"
        return f"waits until a machine has {wanted.needs} free"
    place = machines.get(group.machine_id, group.machine_id)
    state = _state(reply)
    if state is None:
        return f"starts on {place}" + (f": {reply.fault}" if reply and reply.fault else "")
    if state.address:
        return f"is ready at {state.address} on {state.host} (pid {state.pid})"
    return f"starts on {place}" + (f"; it said: {state.said}" if state.said else "")


def states(
    ray: "Ray", cluster: str, names: Sequence[str], *, timeout_s: float = TELL_S
) -> dict[str, PlacedState]:
    """Asks how these processes are, of those that run and say so."""
    replies = ray.ask(cluster, names, "state", timeout_s=timeout_s)
    return {name: state for name in names if (state := _state(replies.get(name))) is not None}


def _state(reply: Reply | None) -> PlacedState | None:
    return PlacedState.from_json(reply.text) if reply and reply.text else None
