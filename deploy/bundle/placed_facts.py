"""Gathers what a Ray knows of a cluster that is placed on it: plain values, without secrets."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from cluster.config import masked
from deploy.placed import PlacedState
from deploy.placement import Group, Machine, Reply
from deploy.ready import states

if TYPE_CHECKING:  # it loads Ray
    from deploy.ray_door import Ray

ASK_S: Final = 5.0
LOOK_S: Final = 20.0  # for a process to start on each machine, and to look


class PlacedFacts:
    """Reads what is placed, as it is when it is asked for."""

    def __init__(self, ray: "Ray", cluster: str) -> None:
        self._ray = ray
        self._cluster = cluster

    def routers(self) -> tuple[str, ...]:
        """Gives the addresses where calls of the cluster come in at those that serve."""
        return tuple(state.internal for state in self._states().values() if state.internal)

    def configs(self) -> Mapping[str, Any]:
        """Gives the configuration of each process, as its order says it."""
        return {name: masked(_order(state)) for name, state in self._states().items()}

    def secrets_file(self) -> str:
        """Its path on every machine; empty: no process says it."""
        paths = (_order(state)["config"]["secrets_file"] for state in self._states().values())
        return next(iter(paths), "")

    def versions(self) -> Mapping[str, Any]:
        """Gives the versions of each machine, or why they are not known."""
        return {machine: said.get("versions", said) for machine, said in self._looks.items()}

    def placement(self) -> Mapping[str, Any]:
        """Says what is where, and how it is."""
        processes = {name: asdict(state) for name, state in self._states().items()}
        for each in processes.values():
            del each["order"]
        machines: Sequence[Machine] = self._ray.machines()
        groups: Sequence[Group] = self._ray.groups(self._cluster)
        return {
            "ray": self._ray.address,
            "machines": list(map(asdict, machines)),
            "set_aside": list(map(asdict, groups)),
            "processes": processes,
            "listening": {machine: said.get("ray", said) for machine, said in self._looks.items()},
        }

    @cached_property
    def _looks(self) -> dict[str, Any]:
        """Looks at each machine."""
        machines = self._ray.machines()
        replies = self._ray.look(machines, LOOK_S)
        return {str(each): _look(replies.get(each.machine_id)) for each in machines}

    def _states(self) -> dict[str, PlacedState]:
        names = sorted(self._ray.actors(self._cluster))
        return states(self._ray, self._cluster, names, timeout_s=ASK_S)


def _order(state: PlacedState) -> Any:
    return json.loads(state.order)


def _look(reply: Reply | None) -> Any:
    if reply is None:
        return {"problem": f"no answer within {LOOK_S:g} s"}
    return json.loads(reply.text) if reply.text else {"problem": reply.fault}
