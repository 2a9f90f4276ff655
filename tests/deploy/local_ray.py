"""What `deploy/ray_door.py` offers, of one machine: the actors are objects of this process, what
they place are real processes."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from deploy.placed import PlacedSupervisor
from deploy.placement import Group, Machine, MachineType, Reply, Wanted

AMPLE = {"CPU": 64.0}
HERE = Machine(machine_id="here", address="127.0.0.1", total=AMPLE, free=AMPLE)


class LocalRay:
    """`close` ends all that it has placed."""

    address = ""  # of its head: it has none

    def __init__(self, folder: Path) -> None:
        """`folder`: where the processes have their directory."""
        self._folder = folder
        self._placed: dict[str, PlacedSupervisor] = {}
        self._groups: dict[str, Group] = {}
        self._threads = ThreadPoolExecutor()

    def close(self) -> None:
        with self._threads:
            list(self._threads.map(lambda each: each.stop(0.0), self._placed.values()))

    def machines(self) -> list[Machine]:
        return [HERE]

    def machine_types(self) -> list[MachineType]:
        return []

    def groups(self, cluster: str) -> list[Group]:
        return list(self._groups.values())

    def actors(self, cluster: str) -> set[str]:
        return set(self._placed)

    def missing(self, machines: Sequence[Machine], *_: Any) -> dict[str, Reply]:
        return {each.machine_id: Reply("[]") for each in machines}

    def place(self, wanted: Wanted, *, near: str | None = None) -> None:
        order = wanted.order
        self._groups[order.name] = Group(
            group_id=order.name,
            cluster=order.cluster,
            name=order.name,
            digest=wanted.digest,
            machine_id=HERE.machine_id,
        )
        self._placed[order.name] = PlacedSupervisor(
            order, machine=HERE.address, directory="lab", run_dir_parent=self._folder
        )

    def ask(
        self, cluster: str, names: Sequence[str], method: str, *arguments: Any, timeout_s: float
    ) -> dict[str, Reply]:
        calls = {
            name: self._threads.submit(self._answer, self._placed[name], method, *arguments)
            for name in names
            if name in self._placed
        }
        wait(calls.values(), timeout_s)
        return {name: Reply(call.result()) for name, call in calls.items() if call.done()}

    def end(self, cluster: str, name: str) -> None:
        self._placed.pop(name).stop(0.0)

    def give_back(self, group: Group) -> None:
        del self._groups[group.name]

    @staticmethod
    def _answer(placed: PlacedSupervisor, method: str, *arguments: Any) -> str:
        if method == "state":
            return placed.state().as_json()
        assert method == "stop"
        return json.dumps(placed.stop(*arguments))
