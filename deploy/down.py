"""Takes processes of a cluster away from a running Ray: drained, then ended, then whatever they
left on any machine."""

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from cluster.errors import StartupError
from deploy.launcher import Supervision
from deploy.placement import PLANNER, Group
from deploy.ready import Say, states

if TYPE_CHECKING:  # it loads Ray
    from deploy.ray_door import Ray

ASK_S: Final = 2.0
MARGIN_S: Final = 5.0  # for an actor to say that it has stopped, beyond what it may take
CLEAR_S: Final = 20.0  # for the last to let go of a machine's directory, and a look there
RETRY_S: Final = 0.2


def take_down(ray: "Ray", cluster: str, *, drain_s: float | None = None, say: Say) -> None:
    """All of it; `drain_s`: None is what each was told at its start. Raises StartupError where
    something may be left."""
    planners = [group for group in ray.groups(cluster) if group.name == PLANNER]
    stop(ray, planners, drain_s=drain_s, say=say)
    # What it has asked for meanwhile is withdrawn, too.
    stop(ray, ray.groups(cluster), drain_s=drain_s, say=say)
    _clear(ray, cluster)


def stop(ray: "Ray", groups: Sequence[Group], *, drain_s: float | None = None, say: Say) -> None:
    """Routers first, also where others go on: they take nothing new, and their streams need the
    workers, else each would have to go on elsewhere. Who does not end in time is killed."""
    routers = [group for group in groups if group.is_router]
    workers = [group for group in groups if not group.is_router]
    for alike in filter(None, (routers, workers)):
        _stop_together(ray, alike, drain_s, say)


def _stop_together(ray: "Ray", groups: Sequence[Group], drain_s: float | None, say: Say) -> None:
    cluster = groups[0].cluster
    names = [group.name for group in groups if group.machine_id]
    drains = _drains(ray, cluster, names)
    longest_s = max(drains.values(), default=0.0) if drain_s is None else drain_s
    wait_s = longest_s + Supervision().stop_s + MARGIN_S
    replies = ray.ask(cluster, list(drains), "stop", drain_s, timeout_s=wait_s)
    for group in groups:
        reply = replies.get(group.name)
        if group.name in drains and (reply is None or reply.text != "true"):
            say(f"{group.name} did not end by itself and was killed.")
        ray.end(cluster, group.name)
        ray.give_back(group)
    _until_ended(ray, groups)
    for group in groups:
        say(f"{group.name} is stopped.")


def _until_ended(ray: "Ray", groups: Sequence[Group]) -> None:
    """Waits: else who takes the name of one next would be taken for it. Raises StartupError."""
    cluster, names = groups[0].cluster, {group.name for group in groups}
    ends_at = time.monotonic() + MARGIN_S
    while left := names & ray.actors(cluster):
        if time.monotonic() > ends_at:
            raise StartupError(
                f"Ray has not ended {', '.join(sorted(left))} of '{cluster}': again?"
            )
        time.sleep(RETRY_S)


def _drains(ray: "Ray", cluster: str, names: Sequence[str]) -> dict[str, float]:
    """Says how long each may drain, by its own order. Who says nothing is not asked to stop."""
    found = states(ray, cluster, names, timeout_s=ASK_S)
    return {name: json.loads(state.order)["config"]["drain_s"] for name, state in found.items()}


def _clear(ray: "Ray", cluster: str) -> None:
    """Clears every machine that is alive: a process may have outlived its actor."""
    machines, ends_at = ray.machines(), time.monotonic() + CLEAR_S
    left = {machine.machine_id: machine for machine in machines}
    while left and time.monotonic() < ends_at:
        replies = ray.clear(list(left.values()), cluster, CLEAR_S)
        for machine_id, reply in replies.items():
            if reply.text and json.loads(reply.text):
                del left[machine_id]
        if left:
            time.sleep(RETRY_S)  # who was killed lets go when it has ended: nobody tells
    if left:
        raise StartupError(
            f"Something of '{cluster}' may be left on {', '.join(map(str, left.values()))}: what"
            " is there is held, or the machine does not answer."
        )
