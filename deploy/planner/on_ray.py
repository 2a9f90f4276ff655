"""The machines of a Ray, as a planner needs them. What it asks for is set aside by name, outlives
it, and is withdrawn by whoever takes the cluster down; a machine on which something is set aside
is never idle to Ray, so none ends under a worker that has not drained.
"""

import logging
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from cluster.errors import StartupError
from deploy.down import stop
from deploy.placed import PlacedState
from deploy.placement import (
    Machine,
    MachineType,
    Wanted,
    impossible,
    most_bound_first,
)

if TYPE_CHECKING:  # it loads Ray
    from deploy.ray_door import Ray

logger = logging.getLogger(__name__)
ASK_S: Final = 5.0


class Placements(NamedTuple):
    """Holds what is set aside for a cluster."""

    names: frozenset[str]  # of processes
    routers: tuple[str, ...]  # where those that run hear calls of the cluster


class OnRay:
    def __init__(self, ray: "Ray", cluster: str) -> None:
        self._ray = ray
        self._cluster = cluster

    def look(self) -> Placements:
        """Raises StartupError where a router does not say how it is."""
        groups = self._ray.groups(self._cluster)
        routers = [group.name for group in groups if group.is_router and group.machine_id]
        replies = self._ray.ask(self._cluster, routers, "state", timeout_s=ASK_S)
        if mute := [name for name in routers if name not in replies]:
            raise StartupError(f"{', '.join(mute)} does not say how it is.")
        states = [PlacedState.from_json(each.text) for each in replies.values() if each.text]
        return Placements(
            names=frozenset(group.name for group in groups),
            routers=tuple(each.internal or each.address for each in states if each.address),
        )

    def place(self, wanted: Sequence[Wanted]) -> list[str]:
        """Returns sentences, of what no machine has even when it is empty, nor any that may be
        added: that is not asked for."""
        machines = self._ray.machines()
        places: list[Machine | MachineType] = [*machines, *self._ray.machine_types()]
        for each in most_bound_first(wanted, machines):
            if any(each.fits(place) for place in places):
                self._ray.place(each)
        return impossible(wanted, places)

    def release(self, names: Collection[str]) -> list[str]:
        """Ends them, and gives back what is set aside; where something is in progress nevertheless
        it may end first."""
        groups = [each for each in self._ray.groups(self._cluster) if each.name in names]
        stop(self._ray, groups, say=lambda line: logger.info("%s", line))
        return []
