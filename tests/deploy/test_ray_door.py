"""What the door to Ray makes of what Ray says, without a Ray."""

from typing import Any

import pytest

from deploy import ray_door
from deploy.ray_door import Ray

pytestmark = pytest.mark.slow  # it loads Ray


def test_a_process_of_another_namespace_is_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [("penstock", "lab/answers-0"), ("others", "lab/answers-1"), ("penstock", "x/y-0")]

    def named(all_namespaces: bool = False) -> list[Any]:
        if all_namespaces:
            return [{"namespace": namespace, "name": name} for namespace, name in known]
        return [name for namespace, name in known if namespace == ray_door.NAMESPACE]

    monkeypatch.setattr(ray_door, "list_named_actors", named)
    assert Ray("10.0.0.1:6379").actors("lab") == {"answers-0"}


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (ray_door.ray_errors.RayError("first\nlast\n"), "last"),
        (ray_door.ray_errors.RayError(" \n"), "RayError"),
        (ray_door.ray_errors.RayError(), "RayError"),
    ],
)
def test_a_failure_is_told_though_it_says_nothing(
    monkeypatch: pytest.MonkeyPatch, error: Exception, fault: str
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(ray_door.ray, "wait", lambda calls, **_: (calls, []))
    monkeypatch.setattr(ray_door.ray, "get", fail)
    assert ray_door._replies({"answers-0": "call"}, 1.0)["answers-0"].fault == fault
