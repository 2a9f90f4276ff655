"""Part by part, and never the last that serves: what is replaced, asked of an account of a
cluster. A real one is in `test_ray_rolling.py`."""

from pathlib import Path

import pytest

from cluster.errors import StartupError
from cluster.secrets import create_secrets
from tests.deploy.fake_rolling import FakeRolling
from tests.deploy.wanted_cluster import CLUSTER_FILE, by_name

TWO = CLUSTER_FILE.replace("numThreads: 2,", "numThreads: 2, minWorkers: 2,")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRolling:
    create_secrets(tmp_path / "secrets.yaml")
    made = FakeRolling(wanted=list(by_name(tmp_path, TWO).values()))
    made.patch(monkeypatch)
    return made


def test_a_worker_is_drained_started_where_it_was_and_served_by_all_routers(
    fake: FakeRolling,
) -> None:
    fake.roll("answers-1")
    assert fake.happened == [
        "stop answers-1",
        "place answers-1",
        "ready answers-1",
        "answers-1 served by 2",
    ]
    assert fake.near == {"answers-1": "at answers-1"}


def test_its_place_is_waited_for_until_ray_counts_it_as_free(
    fake: FakeRolling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.rolling.LOOK_S", 0.0)
    fake.looks_until_free = 2
    fake.roll("answers-1")
    assert fake.happened[:4] == ["stop answers-1", "is full", "is full", "place answers-1"]


def test_a_router_has_to_find_all_workers_that_served(fake: FakeRolling) -> None:
    fake.broken = {"prompts-1"}
    fake.roll("router-0")
    assert fake.happened[-1] == "answers-0, answers-1, prompts-0 served by 1"


@pytest.mark.parametrize(
    ("broken", "name", "part"),
    [
        ({"answers-1"}, "answers-0", "decode"),
        ({"prompts-0"}, "prompts-1", "prefill"),
        ({"router-1"}, "router-0", "router"),
    ],
)
def test_the_last_that_serves_of_its_role_stays_as_it_is(
    fake: FakeRolling, broken: set[str], name: str, part: str
) -> None:
    fake.broken = broken
    [other] = broken
    with pytest.raises(StartupError, match=f"{name} stays as it is: none of {other} serves"):
        fake.roll(name)
    assert fake.happened == []


def test_one_that_does_not_serve_itself_may_be_replaced(fake: FakeRolling) -> None:
    fake.broken = {"answers-0", "answers-1"}
    fake.roll("answers-0", "answers-1")
    assert fake.serving >= {"answers-0", "answers-1"}


def test_of_one_that_is_alone_it_is_said_what_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_secrets(tmp_path / "secrets.yaml")
    fake = FakeRolling(wanted=list(by_name(tmp_path).values()))
    fake.patch(monkeypatch)
    fake.roll("answers-0")
    assert fake.said[0] == (
        "answers-0 is the only decode worker there is: until it is back requests find nobody who"
        " decodes."
    )
    assert fake.serving >= {"answers-0"}
