"""A cluster on Ray when something of it dies, when two share one Ray, when its file is edited, and
when it asks for what no machine has."""

import asyncio
import json
import os
import signal
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.secrets import load_secrets
from deploy.cluster_file.local import SHIPPED_MODEL
from tests.deploy.cpu_time import MOST, QUIET_S, shares
from tests.deploy.polling import is_alive, until
from tests.deploy.ray_operator import (
    ANSWER,
    MACHINES,
    UP,
    Operator,
    answer_at,
    left_of,
    operating,
)
from tests.deploy.weights_server import MODEL, copy_of_the_shipped_model, serving_weights
from tests.router.policy_texts import policy_text
from tests.written_secrets import written

pytestmark = [pytest.mark.slow, pytest.mark.prove, pytest.mark.alone, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    with operating(tmp_path_factory.mktemp("home"), MACHINES) as found:
        yield found


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test all clusters are down, and gone."""
    yield
    if "operator" not in request.fixturenames:
        return
    operator: Operator = request.getfixturevalue("operator")
    for name in ("lab", "other"):
        ended = operator.penstock("down", operator.called(name))
        assert ended.returncode == 0, ended.stderr
        assert left_of(operator.called(name)) == []


def worker_pools(**answers: Any) -> list[dict[str, Any]]:
    decode = {"name": "answers", "role": "decode", "kvPool": "32MiB", "maxSequences": 16}
    return [
        {"name": "prompts", "role": "prefill", "kvPool": "16MiB"},
        {**decode, **answers},
    ]


def test_a_killed_actor_takes_its_process_with_it_and_comes_back(operator: Operator) -> None:
    file = operator.write()
    said = operator.up(file)
    pid = said["processes"]["answers-0"]["pid"]
    os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
    until(lambda: not is_alive(pid), "it follows its actor")
    assert operator.pids(file)["answers-0"] != pid
    assert answer_at(said["routers"][0]) == ANSWER


def test_a_bundle_has_all_machines_and_nothing_that_must_not_be_given_away(
    operator: Operator, tmp_path: Path
) -> None:
    [router] = operator.up(operator.write())["routers"]
    assert answer_at(router) == ANSWER
    ended = operator.penstock("doctor", "--json")
    assert ended.returncode == 0, ended.stderr
    said = [each for each in json.loads(ended.stdout)["findings"] if each["check"] == "sockets"]
    of_ray = [each["what"] for each in said if each["subject"].startswith("Ray on ")]
    assert len(of_ray) >= 2
    assert f":{operator.machines.address.rpartition(':')[2]} (gcs/gcs_server" in " ".join(of_ray)
    ended = operator.penstock("bundle", "-o", tmp_path / "b.tar.gz", "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["missing"] == {}
    with tarfile.open(tmp_path / "b.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    members = {path.name: path.read_bytes() for path in (tmp_path / "b").rglob("*.*")}
    assert {"placement.json", "records.json", "answers-0.yaml", "answers-0.log"} < set(members)
    assert len(json.loads(members["versions.json"])) == 3  # here, and each machine
    secrets = load_secrets(operator.home / "lab-secrets.yaml")
    planted = [*written(secrets), operator.machines.token, "What does len", ANSWER]
    for name, data in members.items():
        assert [each for each in planted if each.encode() in data] == [], name


def test_a_quiet_actor_and_its_worker_cost_next_to_nothing(operator: Operator) -> None:
    pids = operator.pids(operator.write())
    actors = {f"{name}'s actor": psutil.Process(pid).ppid() for name, pid in pids.items()}
    found = asyncio.run(shares({**pids, **actors}, QUIET_S))
    print(found)
    del found["router-0"]
    assert max(found.values()) < MOST, found


def test_one_that_hangs_is_ended_at_the_bound_of_its_drain(operator: Operator) -> None:
    file = operator.write()
    pid = operator.pids(file)["prompts-0"]
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    ended = operator.penstock("down", operator.called("lab"))
    assert ended.returncode == 0, ended.stderr
    assert not is_alive(pid)
    assert time.monotonic() - began < 30


def test_two_clusters_of_one_ray_do_not_see_each_other(operator: Operator) -> None:
    """Their workers have the same names, on the same machines and in the same store."""
    both = [operator.up(operator.write(name)) for name in ("lab", "other")]
    for name, said in zip(("lab", "other"), both, strict=True):
        assert seen_by(operator, name, said) == workers_of(said)
    [first], [second] = (said["routers"] for said in both)
    ended = operator.penstock("down")
    assert ended.returncode == 2
    assert f"name one of {operator.called('lab')}, {operator.called('other')}" in ended.stderr
    assert answer_at(first) == answer_at(second) == ANSWER
    assert operator.penstock("down", operator.called("lab")).returncode == 0
    assert answer_at(second) == ANSWER
    assert left_of(operator.called("other"))
    assert seen_by(operator, "other", both[1]) == workers_of(both[1])


def workers_of(said: dict[str, Any]) -> dict[str, str]:
    """Their addresses, as `penstock up` has told them."""
    processes = said["processes"].items()
    return {name: each["address"] for name, each in processes if name != "router-0"}


def seen_by(operator: Operator, name: str, said: dict[str, Any]) -> dict[str, str]:
    """The same, as the router of a cluster tells it."""
    secrets_file = operator.home / f"{name}-secrets.yaml"
    asked = ("-a", said["internal"][0], "--secrets-file", secrets_file)
    ended = operator.penstock("status", "--json", *asked)
    assert ended.returncode == 0, ended.stderr
    workers = [each["member"]["worker"] for each in json.loads(ended.stdout)["workers"]]
    return {each["worker_id"]: each["address"] for each in workers}


def test_a_policy_that_was_applied_survives_the_router_and_up_again(
    operator: Operator, tmp_path: Path
) -> None:
    """Neither is what brought it: the store has it, and the cluster's file says nothing of it."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(policy_text(7.0))
    file = operator.write()
    router = operator.pids(file)["router-0"]
    ended = operator.penstock("policy", "apply", policy)
    assert ended.returncode == 0, ended.stderr
    os.kill(router, signal.SIGKILL)
    until(lambda: operator.pids(file)["router-0"] != router, "it is healed", within_s=60.0)
    again = operator.penstock(*UP, file)
    assert "Nothing is to be changed." in again.stderr
    in_force = operator.penstock("policy", "status", "--text")
    assert in_force.stdout == policy.read_text(), in_force.stderr
    ended = operator.penstock("cluster", "diff", "-f", file)
    assert ended.returncode == 1, ended.stderr
    assert "spec.queue.stretch" in ended.stdout


def test_weights_are_pulled_once_and_with_them_it_serves(
    operator: Operator, tmp_path: Path
) -> None:
    """Both actors find one disk here, as two workers of a machine do."""
    there = tmp_path / "disk" / "model"
    with serving_weights(copy_of_the_shipped_model(tmp_path / "source")) as server:
        weights = {"source": server.url, "digest": server.weights.digest}
        said = operator.up(operator.write(weights=weights, checkpoint=str(there)))
        assert answer_at(said["routers"][0]) == ANSWER
        assert server.num_sent(MODEL) == (SHIPPED_MODEL / MODEL).stat().st_size
    assert (there / MODEL).read_bytes() == (SHIPPED_MODEL / MODEL).read_bytes()


def test_an_edit_replaces_what_differs_and_says_what(operator: Operator) -> None:
    file = operator.write()
    said = operator.up(file)
    before = {name: each["pid"] for name, each in said["processes"].items()}
    ended = operator.penstock(*UP, operator.write(pools=worker_pools(maxSequences=8)))
    assert ended.returncode == 0, ended.stderr
    assert "answers-0 differs: max_sequences: 16 -> 8" in ended.stderr
    after = operator.pids(file)
    assert {name for name in before if before[name] != after[name]} == {"answers-0"}
    assert answer_at(said["routers"][0]) == ANSWER
    ended = operator.penstock("up", "-f", operator.write(hashGrain=32))
    assert ended.returncode == 2
    assert "hash_grain: 16 -> 32" in ended.stderr
    ended = operator.penstock(*UP, operator.write(pools=worker_pools(minWorkers=2)))
    assert "answers-1 is ready" in ended.stderr
    assert set(operator.pids(operator.write())) == {*before}  # it shrinks again


def test_two_workers_never_share_a_gpu(operator: Operator) -> None:
    file = operator.write(pools=worker_pools(minWorkers=2, resources={"gpus": 1}))
    pids = operator.pids(file)
    given = {
        name: psutil.Process(pid).environ()["CUDA_VISIBLE_DEVICES"] for name, pid in pids.items()
    }
    assert sorted((given["answers-0"], given["answers-1"])) == ["0", "1"]
    assert given["prompts-0"] == given["router-0"] == ""


IMPOSSIBLE = [
    ({"resources": {"gpus": 64}}, "wanted is CPU 1, GPU 64. 127.0.0.2 ("),
    ({"labels": {"zone": "c"}}, "ray start --labels zone=c"),
    ({"resources": {"role": True}}, "ray start --resources '{\"decode\": 1}'"),
]


@pytest.mark.parametrize(("answers", "sentence"), IMPOSSIBLE)
def test_what_no_machine_has_is_said_at_once(
    operator: Operator, answers: dict[str, Any], sentence: str
) -> None:
    began = time.monotonic()
    ended = operator.penstock("up", "-f", operator.write(pools=worker_pools(**answers)))
    assert ended.returncode == 1
    assert "No machine has room for answers-0" in ended.stderr
    assert sentence in ended.stderr
    assert time.monotonic() - began < 10  # most of it imports
    assert operator.penstock("down").returncode == 4


def test_what_a_machine_lacks_is_named_with_it(operator: Operator, tmp_path: Path) -> None:
    ended = operator.penstock("up", "-f", operator.write(secretsFile=str(tmp_path / "none")))
    assert ended.returncode == 1
    for machine in ("127.0.0.2", "127.0.0.3"):
        assert f"{machine} (" in ended.stderr
    assert str(tmp_path / "none") in ended.stderr
    ended = operator.penstock("up", "-f", operator.write(store="redis://127.0.0.1:1/0"))
    assert "does not reach the store at 127.0.0.1:1" in ended.stderr
    assert operator.penstock("down").returncode == 4


def test_what_waits_for_a_machine_is_shown_waiting_and_placed_when_there_is_one(
    operator: Operator,
) -> None:
    pools = worker_pools(labels={"zone": "b"}, resources={"cpus": 4})
    operator.up(operator.write("other", pools=pools))
    file = operator.write("lab", pools=pools)
    ended = operator.penstock("up", "--wait", "--timeout", "4", "-f", file)
    assert ended.returncode == 1
    assert "answers-0 waits until a machine has CPU 4, zone 'b' free (for " in ended.stderr
    assert operator.penstock("down", operator.called("other")).returncode == 0
    assert operator.up(file)["processes"]["answers-0"]["machine"] == "127.0.0.3"


def test_what_a_lost_machine_ran_is_placed_on_another(tmp_path: Path) -> None:
    everything = [{"num_cpus": 4}, {"num_cpus": 4}]
    with operating(tmp_path, everything) as operator:
        file = operator.write()
        said = operator.up(file)
        lost = "127.0.0.3"
        there = [each for each in said["processes"].values() if each["machine"] == lost]
        assert there
        os.kill(operator.machines.raylets[1], signal.SIGKILL)
        for each in there:
            until(lambda pid=each["pid"]: not is_alive(pid), "it follows its machine")
        again = operator.up(file)
        assert {each["machine"] for each in again["processes"].values()} == {"127.0.0.2"}
        assert answer_at(again["routers"][0]) == ANSWER
        assert operator.penstock("down").returncode == 0
        assert left_of(operator.called("lab")) == []
