"""In which order processes of a cluster are taken away, on a Ray that only notes what it hears."""

import json
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from deploy.down import stop, take_down
from deploy.placed import PlacedState
from deploy.placement import Group, Machine, Reply

NAMES = ("router-0", "router-1", "router-x-0", "answers-0")  # one pool is called 'router-x'


class NotingRay:
    """Everything runs until it is ended."""

    def __init__(self) -> None:
        self.stopped: list[set[str]] = []
        self._actors = set(NAMES)

    def groups(self, cluster: str) -> list[Group]:
        return [
            Group(group_id=name, cluster=cluster, name=name, digest="d", machine_id="m")
            for name in NAMES
        ]

    def machines(self) -> list[Machine]:
        return [Machine(machine_id="m", address="10.0.0.1")]

    def ask(
        self, _: str, names: Sequence[str], method: str, *__: Any, timeout_s: float
    ) -> dict[str, Reply]:
        if method == "stop":
            self.stopped.append(set(names))
            return dict.fromkeys(names, Reply(text="true"))
        order = json.dumps({"config": {"drain_s": 1.0}})
        state = PlacedState(order=order, host="h", machine="10.0.0.1")
        return dict.fromkeys(names, Reply(text=state.as_json()))

    def end(self, _: str, name: str) -> None:
        self._actors.remove(name)

    def give_back(self, _: Group) -> None:
        pass

    def actors(self, _: str) -> set[str]:
        return set(self._actors)

    def clear(self, *_: Any) -> dict[str, Reply]:
        return {"m": Reply(text="true")}


def all_of_it(ray: Any, say: Callable[[str], None]) -> None:
    take_down(ray, "lab", say=say)


def what_an_edit_left_out(ray: Any, say: Callable[[str], None]) -> None:
    stop(ray, ray.groups("lab"), say=say)


@pytest.mark.parametrize("ends", [all_of_it, what_an_edit_left_out])
def test_routers_end_before_the_workers_that_their_streams_need(
    ends: Callable[[Any, Callable[[str], None]], None],
) -> None:
    ray, told = NotingRay(), list[str]()
    ends(cast("Any", ray), told.append)
    assert ray.stopped == [{"router-0", "router-1"}, {"router-x-0", "answers-0"}]
    assert [line.partition(" ")[0] for line in told] == list(NAMES)
