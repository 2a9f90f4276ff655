"""`penstock plan`, and the speeds that it takes from a status."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.codec import load_report_to_pb
from cluster.errors import ConfigError
from cluster.types import LoadReport, Role, WorkerId
from cluster.worker_codec import member_to_pb
from penstock.cli.app import run
from penstock.cli.status import reported
from penstock.v1 import worker_pb2 as pb
from simulator.fitted import fitted
from simulator.setting import DECODE_COST, PREFILL_COST, Setting
from simulator.speeds import load_speeds, speeds_of

WORKLOAD = (
    "shared_prefixes: {num_requests: 80, rate: 3, num_groups: 4, prefix_tokens: 2048,"
    " own_tokens: 3000, output_tokens: 40}"
)
SETTING = Setting(num_prefill=1, num_decode=1)


def plan(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        run(["plan", "--workload", WORKLOAD, "--most", "6", *arguments])
    return int(ended.value.code or 0)


def test_the_choice_is_the_cheapest_that_reaches_the_goal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert plan("--json") == 0
    found = json.loads(capsys.readouterr().out)
    enough = [each["gpus"] for each in found["candidates"] if each["suffices"]]
    assert found["choice"]["gpus"] == min(enough)
    less = [each for each in found["candidates"] if each["gpus"] < found["choice"]["gpus"]]
    assert not any(each["suffices"] for each in less)
    assert found["sentences"]


def test_the_table_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan() == 0
    out = capsys.readouterr().out
    for text in ("prefill+decode", "TTFT p99 s", "ITL ms", "is the cheapest that reaches it"):
        assert text in out


def test_no_size_within_the_bounds_reaches_what_more_workers_would(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert plan("--rate", "40", "--most", "1", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert {(each["prefill"], each["decode"]) for each in found["candidates"]} <= {(0, 1), (1, 1)}
    assert found["choice"] is None
    assert not any(each["suffices"] for each in found["candidates"])
    assert found["sentences"][-1] == "No size within the bounds reaches it."


def test_targets_that_nobody_could_meet_are_met_by_no_size(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert plan("--ttft", "0.001", "--most", "1", "--json") == 1
    assert json.loads(capsys.readouterr().out)["choice"] is None


def test_speeds_of_a_status_are_what_is_planned_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Workers ten times as slow: more of them."""
    fast, slow = tmp_path / "fast.json", tmp_path / "slow.json"
    make = replace(SETTING.decode, prefill_cost=PREFILL_COST.times(4.0))
    fast.write_text(json.dumps({"workers": [], "speeds": speeds_of(SETTING)}))
    slow.write_text(json.dumps(speeds_of(replace(SETTING, prefill=make, decode=make))))
    sizes = []
    for file in (fast, slow):
        assert plan("--speeds", str(file), "--json") == 0
        sizes.append(json.loads(capsys.readouterr().out)["choice"]["gpus"])
    assert sizes[0] < sizes[1]


def test_what_a_status_exports_is_what_workers_report() -> None:
    """Through the wire's messages, and a file."""
    load = LoadReport(num_blocks=1000, prefill_cost=PREFILL_COST, decode_cost=DECODE_COST)
    workers = [
        pb.WorkerStatus(member=_registered(role), load=load_report_to_pb(load)) for role in Role
    ]
    workers.append(pb.WorkerStatus())  # one that the router does not hear from
    exported = speeds_of(fitted(SETTING, reported(pb.StatusResponse(workers=workers))))
    assert exported["prefill"]["prefill_cost"]["c1"] == PREFILL_COST.c1
    assert exported["decode"]["decode_cost"]["d0"] == DECODE_COST.d0
    assert exported["decode"]["cache_tokens"] == 1000 * SETTING.decode.block_size


def _registered(role: Role) -> pb.RegisterRequest:
    member = SETTING.member(role, WorkerId(f"{role}-0"), 0, 512)
    return member_to_pb(replace(member, worker=replace(member.worker, address="127.0.0.1:1")))


def test_without_prefill_workers_the_others_stand_for_them() -> None:
    load = LoadReport(num_blocks=1000, prefill_cost=PREFILL_COST.times(3.0))
    member = SETTING.member(Role.DECODE, WorkerId("decode-0"), 0, 512)
    setting = fitted(SETTING, [(member, load)])
    assert setting.prefill.prefill_cost == PREFILL_COST.times(3.0)


def _without(key: str) -> dict[str, Any]:
    return {name: value for name, value in speeds_of(SETTING).items() if name != key}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is not JSON"),
        ("[" * 5000, "is not JSON"),
        ("[]", "give keys with values"),
        (json.dumps({"speeds": None}), "do not know their costs yet"),
        (json.dumps(_without("decode")), "decode"),
        (json.dumps({**_without("link"), "lnk": {}}), "lnk"),
        (json.dumps({**speeds_of(SETTING), "link": {"setup_s": "soon"}}), "setup_s"),
    ],
)
def test_a_wrong_file_of_speeds_is_told(tmp_path: Path, content: str, sentence: str) -> None:
    file = tmp_path / "speeds.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=sentence):
        load_speeds(file)


def test_no_file_of_speeds(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="penstock status --json"):
        load_speeds(tmp_path / "none.json")


def test_a_policy_names_the_targets_or_the_options_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "policy.yaml"
    assert plan("--policy", str(file), "--ttft", "1") != 0
    assert "not both" in capsys.readouterr().err
