"""Replaces what runs part by part, so that the cluster serves meanwhile: one is drained and started
anew where it was, and before the next all routers send requests to it."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cluster.errors import StartupError
from deploy.down import stop
from deploy.placement import Group, Wanted
from deploy.plan import Part
from deploy.ready import LOOK_S, Say, states, until_ready
from deploy.served import serving_now, until_any_serves, until_served

if TYPE_CHECKING:  # it loads Ray
    from deploy.ray_door import Ray

ROOM_S: Final = 10.0
# What is missed while the only one of its kind is away.
ALONE: Final = {
    Part.ROUTER: "router there is: until it is back clients find nobody",
    Part.DECODE: "decode worker there is: until it is back requests find nobody who decodes",
    Part.PREFILL: "prefill worker there is: until it is back decode workers compute prompts",
}


class Rolling:
    """Whoever has no secrets here, as from a machine outside, cannot ask routers: then a part is
    replaced once that before it is ready."""

    def __init__(self, ray: "Ray", wanted: Sequence[Wanted], *, timeout_s: float, say: Say) -> None:
        """`wanted`: all of the cluster; `timeout_s`: for each to serve."""
        self._ray = ray
        self._wanted = wanted
        self._timeout_s = timeout_s
        self._say = say
        self._secrets_file = Path(wanted[0].order.config["secrets_file"])

    @property
    def serving(self) -> set[str]:
        """The workers that any router sends requests to."""
        return set().union(*self._serving(self._doors()).values())

    def replace(self, one: Wanted, group: Group) -> None:
        """Raises StartupError where it had better stay as it is, or does not serve in time."""
        before = self.serving
        self._check_not_last(one, before)
        self._say(f"{one.name} is replaced.")
        stop(self._ray, [group], say=self._say)
        self._until_room(one, group.machine_id)
        self._ray.place(one, near=group.machine_id or None)
        until_ready(self._ray, [one], timeout_s=self._timeout_s, say=self._say)
        if self._secrets_file.exists():
            self._until_served(one, before)

    def _until_room(self, one: Wanted, machine_id: str) -> None:
        """Ray counts what was given back as free a moment later: until then it would place this
        elsewhere, and clients know where a router is."""
        ends_at = time.monotonic() + ROOM_S
        while time.monotonic() < ends_at:
            there = [each for each in self._ray.machines() if each.machine_id == machine_id]
            if not there or not one.fits(there[0]) or one.fits_now(there[0]):
                return
            time.sleep(LOOK_S)  # Ray tells nobody

    def _until_served(self, one: Wanted, before: set[str]) -> None:
        """A router that is new has to find all that served before; a worker has to be found."""
        doors, workers = self._doors(), [one.name]
        if one.order.part is Part.ROUTER:
            doors = {one.name: doors[one.name]} if one.name in doors else {}
            workers = sorted(before)
        until_served(list(doors.values()), workers, self._secrets_file, self._timeout_s)

    def _check_not_last(self, one: Wanted, serving: set[str]) -> None:
        part = one.order.part
        others = [each.name for each in self._wanted if each.order.part is part and each != one]
        if not others:
            self._say(f"{one.name} is the only {ALONE[part]}.")
            return
        if not self._secrets_file.exists():
            return
        doors = self._doors()
        if part is Part.ROUTER:
            is_served = one.name not in doors or self._has_another_door(one, doors)
        else:
            is_served = one.name not in serving or until_any_serves(
                list(doors.values()), others, self._secrets_file, self._timeout_s
            )
        if not is_served:
            raise StartupError(
                f"{one.name} stays as it is: none of {', '.join(others)} serves within"
                f" {self._timeout_s:g} s, and without one no {part} is left. See"
                " 'penstock status', and type this again."
            )

    def _has_another_door(self, one: Wanted, doors: dict[str, str]) -> bool:
        others = {name: door for name, door in doors.items() if name != one.name}
        return any(self._serving(others).values())

    def _serving(self, doors: dict[str, str]) -> dict[str, set[str]]:
        if not self._secrets_file.exists():
            return {}
        return serving_now(list(doors.values()), self._secrets_file)

    def _doors(self) -> dict[str, str]:
        """Gives the address for calls of the cluster of each router that is ready."""
        routers = [each.name for each in self._wanted if each.order.part is Part.ROUTER]
        found = states(self._ray, self._wanted[0].order.cluster, routers)
        return {name: state.internal for name, state in found.items() if state.internal}
