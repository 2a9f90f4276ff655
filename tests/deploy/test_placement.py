"""What a cluster's file wants of machines, which of them have it, and what is to be done."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.config import parse_config
from cluster.errors import ConfigError
from deploy.cluster_file.local import SHIPPED_MODEL
from deploy.placed import StartOrder
from deploy.placement import (
    Machine,
    MachineType,
    Wanted,
    impossible,
    most_bound_first,
    spread,
    staffed,
    usable,
    wanted,
)
from deploy.plan import Part
from deploy.planner.config import PlannerConfig
from deploy.reconcile import Placing, differences, divides, in_turn, steps
from deploy.weights.origin import Weights
from tests.deploy.wanted_cluster import CLUSTER_FILE, by_name, document

SMALL = Machine(machine_id="s", address="10.0.0.1", total={"CPU": 2.0}, free={"CPU": 2.0})
LARGE = Machine(
    machine_id="l",
    address="10.0.0.2",
    host="large",
    labels={"zone": "a", "rack": "r1"},
    total={"CPU": 16.0, "GPU": 2.0, "prefill": 1.0},
    free={"CPU": 16.0, "GPU": 2.0, "prefill": 1.0},
)


def test_each_process_wants_what_its_pool_sets_aside(tmp_path: Path) -> None:
    found = by_name(tmp_path)
    assert list(found) == ["router-0", "router-1", "prompts-0", "prompts-1", "answers-0"]
    assert found["router-0"].resources == {"CPU": 1.0}
    assert found["prompts-1"].resources == {"CPU": 4.0, "GPU": 1.0, "prefill": 1.0}
    assert found["answers-0"].resources == {"CPU": 2.0}
    assert found["answers-0"].labels == {"rack": "r1", "zone": "a"}
    assert found["answers-0"].order.num_threads == 2


def test_routers_run_where_their_labels_say(tmp_path: Path) -> None:
    text = CLUSTER_FILE.replace("{count: 2, ", "{count: 2, labels: {rack: doors}, ")
    found = by_name(tmp_path, text)
    assert found["router-1"].labels == {"rack": "doors"}
    assert found["prompts-0"].labels == {}


def test_orders_are_for_any_machine_and_find_each_other_through_the_store(tmp_path: Path) -> None:
    found = by_name(tmp_path)
    router, worker = found["router-0"].order, found["answers-0"].order
    assert router.part is Part.ROUTER
    assert router.config["store"] == worker.config["router"] == "redis://10.0.0.1:6379/0"
    assert router.config["secrets_file"] == str(tmp_path / "secrets.yaml")
    assert "run_dir" not in worker.config
    assert "policy_state" not in router.config
    assert worker.config["drain_s"] == 7.0


@pytest.mark.parametrize(
    ("line", "instead", "sentence"),
    [
        ("  store: redis://10.0.0.1:6379/0\n", "", "add 'store: redis://HOST:6379/0'"),
        ("  secretsFile: secrets.yaml\n", "", "add 'secretsFile: FILE'"),
        ("role: decode, ", "role: decode, device: cuda, ", "add 'resources: {gpus: 1}'"),
    ],
)
def test_what_many_machines_need_is_said_with_the_line_to_add(
    tmp_path: Path, line: str, instead: str, sentence: str
) -> None:
    text = CLUSTER_FILE.replace(line, instead).replace("count: 2, ", "")
    with pytest.raises(ConfigError, match=sentence):
        by_name(tmp_path, text)


def test_what_fits_on_no_machine_is_named_with_what_each_has(tmp_path: Path) -> None:
    told = impossible(by_name(tmp_path).values(), [SMALL])
    assert told == [
        "No machine has room for prompts-0 to prompts-1: wanted is CPU 4, GPU 1, prefill 1."
        " 10.0.0.1 has CPU 2, GPU 0, prefill 0."
        " Start its machines with: ray start --resources '{\"prefill\": 1}'",
        "No machine has room for answers-0: wanted is CPU 2, rack 'r1', zone 'a'."
        " 10.0.0.1 has rack '', zone ''."
        " Start such a machine, with: ray start --labels rack=r1,zone=a",
    ]
    assert impossible(by_name(tmp_path).values(), [SMALL, LARGE]) == []


def test_what_a_machine_that_may_be_added_has_is_not_impossible(tmp_path: Path) -> None:
    found = by_name(tmp_path)
    large, small = (
        MachineType(name=name, total=total)
        for name, total in (("large", LARGE.total), ("small", {"CPU": 1.0}))
    )
    assert impossible(found.values(), [SMALL, large]) == []
    [told] = impossible([found["answers-0"]], [small])
    assert "type 'small', which may be added, has CPU 1." in told


def test_only_machines_that_may_run_a_part_are_asked_what_they_have(tmp_path: Path) -> None:
    empty = Machine(machine_id="h", address="10.0.0.3")
    found = list(by_name(tmp_path).values())
    assert usable(found, [empty, SMALL, LARGE]) == [SMALL, LARGE]


def test_who_needs_one_machine_is_placed_before_who_may_lie_anywhere(tmp_path: Path) -> None:
    found = most_bound_first(by_name(tmp_path).values(), [SMALL, LARGE])
    assert names(found) == ["prompts-0", "prompts-1", "answers-0", "router-0", "router-1"]


def test_routers_are_spread(tmp_path: Path) -> None:
    routers = list(by_name(tmp_path).values())[:2]
    assert sorted(spread(routers, [SMALL, LARGE]).values()) == ["l", "s"]
    assert spread(routers[:1], [SMALL, LARGE], taken=["s"]) == {"router-0": "l"}
    assert spread(routers, []) == {}


GROWING = CLUSTER_FILE.replace("minWorkers: 2", "minWorkers: 1, maxWorkers: 3")


def test_a_pool_that_may_grow_has_a_planner_that_knows_what_its_workers_want(
    tmp_path: Path,
) -> None:
    assert "planner" not in by_name(tmp_path)
    found = by_name(tmp_path, GROWING)
    assert list(found)[2:] == ["prompts-0", "prompts-1", "prompts-2", "answers-0", "planner"]
    order = found["planner"].order
    config = parse_config(PlannerConfig, dict(order.config))
    assert [(pool.name, pool.least, pool.most) for pool in config.pools] == [
        ("prompts", 1, 3),
        ("answers", 1, 1),
    ]
    assert config.pools[0].sample.named("prompts-2") == found["prompts-2"]
    assert found["planner"].order.as_json() == StartOrder.from_json(order.as_json()).as_json()


@pytest.mark.parametrize(
    ("running", "expected"),
    [
        ((), ["prompts-0"]),
        (("prompts-1",), ["prompts-1"]),  # the planner let the other go
        (("prompts-0", "prompts-2"), ["prompts-0", "prompts-2"]),
        (("prompts-0", "prompts-3"), ["prompts-0"]),  # there is no fourth one any more
    ],
)
def test_what_a_planner_decided_stays_within_the_bounds(
    tmp_path: Path, running: tuple[str, ...], expected: list[str]
) -> None:
    pools = document(GROWING).spec.pools
    found = staffed(by_name(tmp_path, GROWING).values(), pools, running)
    assert [each for each in names(found) if each.startswith("prompts")] == expected
    assert {"router-0", "router-1", "answers-0", "planner"} <= set(names(found))


def placings(found: dict[str, Wanted]) -> list[Placing]:
    return [Placing(name=name, digest=each.digest) for name, each in found.items()]


def names(some: Any) -> list[str]:
    return [each.name for each in some]


def test_the_same_twice_changes_nothing(tmp_path: Path) -> None:
    found = by_name(tmp_path)
    todo = steps(list(found.values()), placings(by_name(tmp_path)))
    assert names(todo.keep) == list(found)
    assert (todo.start, todo.change, todo.stop) == ((), (), ())


def test_what_is_missing_starts_what_is_too_much_stops_what_differs_changes(tmp_path: Path) -> None:
    before = placings(by_name(tmp_path))
    text = CLUSTER_FILE.replace("minWorkers: 2", "minWorkers: 1").replace(
        "numThreads: 2", "numThreads: 2, maxSequences: 8, minWorkers: 2"
    )
    todo = steps(list(by_name(tmp_path, text).values()), before)
    assert names(todo.keep) == ["router-0", "router-1", "prompts-0"]
    assert names(todo.change) == ["answers-0"]
    assert names(todo.start) == ["answers-1"]
    assert todo.stop == ("prompts-1",)


def test_a_restart_changes_what_is_as_it_should_be(tmp_path: Path) -> None:
    found = by_name(tmp_path)
    todo = steps(list(found.values()), placings(found)[1:], restart=True)
    assert (names(todo.start), names(todo.change)) == (["router-0"], list(found)[1:])
    assert todo.keep == ()


def of_wire(found: dict[str, Wanted], version: int) -> dict[str, Wanted]:
    """As a build says it that speaks this version."""
    return {
        name: replace(each, order=replace(each.order, wire_version=version, version="1.2"))
        for name, each in found.items()
    }


@pytest.mark.parametrize(
    ("version", "turns"),
    [
        (3, "router-0 router-1 prompts-0 answers-0 prompts-1"),
        (2, "prompts-0 answers-0 prompts-1 router-0 router-1"),
        (1, "prompts-0 answers-0 prompts-1 router-0 router-1"),
    ],
)
def test_routers_speak_to_all_workers_at_each_step(
    tmp_path: Path, version: int, turns: str
) -> None:
    found = of_wire(by_name(tmp_path), 2)
    wanted_now = list(of_wire(by_name(tmp_path), version).values())
    before = {name: each.order.as_json() for name, each in found.items()}
    assert names(in_turn(wanted_now, before, set(found))) == turns.split()
    todo = steps(wanted_now, placings(by_name(tmp_path)))
    assert len(todo.change) == len(found), "a release is part of what runs"


def test_who_does_not_serve_is_mended_before_others_are_touched(tmp_path: Path) -> None:
    found = by_name(tmp_path)
    turn = in_turn(list(found.values()), {}, {"prompts-0", "answers-0"})
    assert names(turn) == ["prompts-1", "prompts-0", "answers-0", "router-0", "router-1"]


def test_a_step_over_two_wire_versions_divides_a_cluster(tmp_path: Path) -> None:
    one, two, three = (
        of_wire(by_name(tmp_path), version)["answers-0"].order.as_json() for version in (1, 2, 3)
    )
    assert divides(one, two) == divides(two, one) == divides(two, three) == []
    assert divides(one, three) == ["wire_version: 1 -> 3"]
    told = json.loads(one)
    del told["wire_version"], told["version"]  # as before orders said so
    assert divides(json.dumps(told), three) == []
    assert in_turn([found := by_name(tmp_path)["answers-0"]], {found.name: json.dumps(told)}, ())


def test_what_is_set_aside_is_part_of_it(tmp_path: Path) -> None:
    text = CLUSTER_FILE.replace("cpus: 4", "cpus: 3")
    todo = steps(list(by_name(tmp_path, text).values()), placings(by_name(tmp_path)))
    assert names(todo.change) == ["prompts-0", "prompts-1"]


def test_differences_are_named_and_those_that_divide_a_cluster_told_apart(tmp_path: Path) -> None:
    before = by_name(tmp_path)["answers-0"].order.as_json()
    smaller = CLUSTER_FILE.replace("numThreads: 2", "numThreads: 2, maxSequences: 8")
    after = by_name(tmp_path, smaller)["answers-0"].order.as_json()
    assert differences(before, after) == ["max_sequences: 64 -> 8"]
    assert divides(before, after) == []
    coarser = CLUSTER_FILE.replace("  drain: 7s", "  drain: 7s\n  hashGrain: 32")
    after = by_name(tmp_path, coarser)["answers-0"].order.as_json()
    assert divides(before, after) == ["hash_grain: 16 -> 32"]


def pulling(digit: str, where: str = "s3://models/tiny", more: str = "") -> str:
    said = f"{{source: '{where}', digest: 'sha256:{digit * 64}'}}"
    return CLUSTER_FILE.replace("  drain: 7s", f"  drain: 7s\n  weights: {said}{more}")


def test_weights_that_are_pulled_are_ordered_by_where_they_come_from(tmp_path: Path) -> None:
    """And each machine says where they are."""
    described = tmp_path / "described"
    described.mkdir()
    (described / "config.json").write_bytes((SHIPPED_MODEL / "config.json").read_bytes())
    found = wanted(document(pulling("a")), tmp_path, described=described)
    for order in (each.order for each in found):
        assert "checkpoint" not in order.config
        assert order.config["model"] == "tiny"
        assert order.weights == Weights(source="s3://models/tiny", digest="sha256:" + "a" * 64)
        assert order.weights_dir == ""
        assert StartOrder.from_json(order.as_json()) == order
    named = pulling("a", more="\n  checkpoint: there/mine")
    order = wanted(document(named), tmp_path, described=described)[0].order
    assert (order.weights_dir, order.config["model"]) == (str(tmp_path / "there/mine"), "mine")


def test_other_weights_divide_a_cluster_and_the_same_from_elsewhere_do_not(tmp_path: Path) -> None:
    before, other, elsewhere = (
        wanted(document(text), tmp_path, described=SHIPPED_MODEL)[0].order.as_json()
        for text in (pulling("a"), pulling("b"), pulling("a", "gs://copies/tiny"))
    )
    [line] = divides(before, other)
    assert line.startswith('weights.digest: "sha256:aaa')
    assert divides(before, elsewhere) == []
    assert differences(before, elsewhere) == [
        'weights.source: "s3://models/tiny" -> "gs://copies/tiny"'
    ]


def test_routers_on_many_machines_show_the_certificate_of_each(tmp_path: Path) -> None:
    tls = "{certificate: /etc/tls/chain.pem, key: /etc/tls/key.pem}"
    text = CLUSTER_FILE.replace("ports: [50051]}", f"ports: [50051], tls: {tls}}}")
    config = by_name(tmp_path, text)["router-1"].order.config
    assert config["tls"] == {"certificate": "/etc/tls/chain.pem", "key": "/etc/tls/key.pem"}
    assert config["internal"]
