"""`penstock policy`: rules by name, policies as files, and what they do to recorded traffic."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.penstock.command_line import Penstock

Write = Callable[[str, str], str]
ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "deploy" / "policies").glob("*.yaml"))
ENVELOPE = "apiVersion: penstock/v1\nkind: RoutingPolicy\nmetadata: {name: mine}\n"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def policy(name: str, spec: str) -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"{ENVELOPE}spec: {spec}\n")
        return str(path)

    return policy


def test_check_tells_valid_risky_and_invalid_apart(penstock: Penstock, write: Write) -> None:
    valid, risky = write("valid", "{}"), write("risky", "{placement: {rule: random}}")
    broken = write("broken", "{queue: {strech: 2}}")
    assert penstock("policy", "check", valid) == (0, f"{valid}: valid\n", "")
    ended = penstock("policy", "check", valid, risky)
    assert ended.code == 3
    assert f"{risky}: risky\n  line 4: 'spec.placement.rule' is 'random'" in ended.out
    ended = penstock("policy", "check", risky, broken, valid, "--json")
    assert ended.code == 1
    assert [found["verdict"] for found in ended.json] == ["risky", "invalid", "valid"]
    assert ended.json[1]["sentences"] == [
        "'strech' in 'spec.queue' is an unknown key: did you mean 'stretch'?"
    ]
    assert ended.json[1]["findings"][0]["line"] == 4
    assert penstock("policy", "check").code == 2


def test_a_policy_can_come_from_stdin(penstock: Penstock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(ENVELOPE + "spec: {placement: {rule: x}}"))
    ended = penstock("policy", "check", "-")
    assert ended.code == 1
    assert "-: invalid\n  line 4: 'spec.placement': 'x' is no placement rule" in ended.out


def test_what_show_prints_is_the_same_policy(
    penstock: Penstock, write: Write, tmp_path: Path
) -> None:
    spec = "{classes: [{name: a, ttft: 1s}], canary: {traffic: 1%}, sessions: null}"
    mine, shown = write("mine", spec), tmp_path / "shown.yaml"
    for options in ((), ("--effective",)):
        shown.write_text(penstock("policy", "show", mine, *options).out)
        assert penstock("policy", "check", str(shown)).code == 0
        assert penstock("policy", "diff", mine, str(shown)) == (0, "", "")
    assert "quantile: p90" in shown.read_text()
    assert "quantile" not in penstock("policy", "show", mine).out
    assert penstock("policy", "show", "--json").json["spec"] == {}
    assert penstock("policy", "show", "/nowhere.yaml").code == 2


def test_without_a_file_the_defaults_are_shown(penstock: Penstock, tmp_path: Path) -> None:
    shown = tmp_path / "shown.yaml"
    shown.write_text(penstock("policy", "show", "--effective").out)
    assert penstock("policy", "check", str(shown)).code == 0
    default = str(ROOT / "deploy" / "policies" / "default.yaml")
    assert penstock("policy", "diff", str(shown), default).code == 0


def test_diff_names_what_changes_in_meaning(penstock: Penstock, write: Write) -> None:
    before = write("before", "{classes: [{name: a}, {name: b, ttft: 1s}]}")
    after = write("after", "{classes: [{name: b}, {name: a}], queue: {stretch: 2}, sessions: null}")
    ended = penstock("policy", "diff", before, after)
    assert ended.code == 1
    lines = ended.out.splitlines()
    assert lines[0] == "spec.classes[b].ttft: 1s -> 2s"
    assert "spec.defaultClass: a -> b" in lines
    assert "spec.queue.stretch: 1.0 -> 2.0" in lines
    assert "spec.sessions: absent -> null" in lines
    assert {"field": "spec.sessions.ttl", "before": "10m"} in penstock(
        "policy", "diff", before, after, "--json"
    ).json
    assert penstock("policy", "diff", before, write("broken", "{x: 1}")).code == 2


def test_the_schema_is_printed(penstock: Penstock) -> None:
    schema = penstock("policy", "schema").json
    assert schema["$schema"].endswith("2020-12/schema")
    ended = penstock("policy", "schema", "--json")
    assert ended.json == schema
    assert ended.out.count("\n") == 1


def test_other_routers_configurations_are_imported(penstock: Penstock, tmp_path: Path) -> None:
    flags = ("--policy", "cache_aware", "--cache-threshold", "0.5", "--queue-size", "7")
    ended = penstock("policy", "import", "--from", "sglang", "--", *flags)
    assert ended.code == 0
    assert "rule: sglang_cache_aware" in ended.out
    assert "maxQueued: 7" in ended.out
    assert "not carried over: '--cache-threshold': matches are exact" in ended.err
    script = tmp_path / "run.sh"
    script.write_text("smg launch \\\n  " + " ".join(flags))
    assert penstock("policy", "import", str(script), "--from", "sglang").out == ended.out
    policy = tmp_path / "policy.yaml"
    policy.write_text(ended.out)
    assert penstock("policy", "check", str(policy)).code == 0
    refused = penstock("policy", "import", str(script), "--from", "llm-d")
    assert refused.code == 1
    assert "EndpointPickerConfig" in refused.err
    assert penstock("policy", "import", "/nowhere", "--from", "llm-d").code == 1
    assert penstock("policy", "import", str(script), "--from", "dynamo").code == 2
    json = penstock("policy", "import", str(script), "--from", "sglang", "--json").json
    assert json["policy"]["spec"]["admission"]["maxQueued"] == 7
    assert len(json["not_carried_over"]) == 2


@pytest.mark.parametrize(
    ("kind", "given", "sentence"),
    [
        ("sglang", ("--", "--frobnicate", "3"), "none of these is a flag of SGLang's router"),
        ("sglang", ("--", "--policy", "fastest"), "'--policy fastest' is no policy of SGLang's"),
        ("sglang", ("fastest",), "'fastest' cannot be read"),
        ("llm-d", ("{EPP}",), "none of the profile's plugins is known here: frobnicator"),
    ],
)
def test_what_nobody_knows_makes_no_policy(
    penstock: Penstock, tmp_path: Path, kind: str, given: tuple[str, ...], sentence: str
) -> None:
    epp = tmp_path / "epp.yaml"
    epp.write_text(
        "apiVersion: v1\nkind: EndpointPickerConfig\nplugins: [{type: frobnicator}]\n"
        "schedulingProfiles: [{name: a, plugins: [{pluginRef: frobnicator}]}]\n"
    )
    words = [str(epp) if word == "{EPP}" else word for word in given]
    ended = penstock("policy", "import", "--from", kind, *words)
    assert (ended.code, ended.out) == (1, "")
    assert sentence in ended.err


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_every_example_passes_check(penstock: Penstock, path: Path) -> None:
    assert penstock("policy", "check", str(path)) == (0, f"{path}: valid\n", "")
    assert path.read_text().startswith(
        "# yaml-language-server: $schema=../../router/policy_file/policy.schema.json\n"
    )


def test_a_policy_is_replayed_by_its_rule(penstock: Penstock, write: Write) -> None:
    mine = write("mine", "{placement: {parameters: {mayFetch: false}}}")
    rule = "priced: {mayFetch: false}"
    replay = ("policy", "replay", "--limit", "200", "--json")
    of_policy, of_rule = penstock(*replay, "--policy", mine, "--rule", rule).json
    assert {of_policy["rule"], of_rule["rule"]} == {mine, rule}
    assert {**of_policy, "rule": ""} == {**of_rule, "rule": ""}
    assert penstock(*replay, "--policy", "/nowhere.yaml").code == 2


def test_invented_traffic_is_replayed_over_links_of_any_speed(penstock: Penstock) -> None:
    replay = ("policy", "replay", "--workload", "shift", "--limit", "60", "--json")
    rules = ("--rule", "priced", "--rule", "mooncake_algorithm1")

    def replayed(link: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = penstock(*replay, *rules, "--link", link).json
        return rows

    assert [row["setting"]["fetch_bytes_per_s"] for row in replayed("10Gbit")] == [1.25e9, 1.25e9]
    assert replayed("1.25GB/s") == replayed("10Gbit/s")
    assert all(row["fetched_bytes"] for row in replayed("20GB"))
    assert [row["fetched_bytes"] for row in replayed("none")] == [0, 0]


@pytest.mark.slow
def test_rules_are_listed_and_replayed(penstock: Penstock) -> None:
    """The shipped trace; a rule of a name that does not exist is told the names."""
    listed = penstock("policy", "list", "--json")
    assert listed.json["mooncake_algorithm1"] == {"balancingThreshold": 2.0, "mayFetch": True}
    rules = ("--rule", "priced", "--rule", "random")
    ended = penstock("policy", "replay", *rules, "--workers", "2,4", "--limit", "300", "--json")
    assert [(row["rule"], row["setting"]["num_workers"]) for row in ended.json] == [
        ("priced", 2),
        ("priced", 4),
        ("random", 2),
        ("random", 4),
    ]
    assert ended.json[0]["mean_ttft_s"] < ended.json[2]["mean_ttft_s"]
    assert "an endless cache would hold" in ended.err
    table = penstock("policy", "replay", *rules, "--limit", "50").out
    assert table.startswith("rule")
    alone = penstock("policy", "replay", "--rule", "priced: {mayFetch: false}", "--json")
    assert alone.json[0]["fetched_bytes"] == 0
    for wrong in (
        ("--rule", "best"),
        ("--rule", "priced: {fetch: 1}"),
        ("--workers", "0"),
        ("--cache", "3X"),
        ("--cost", "1b"),
    ):
        refused = penstock("policy", "replay", *wrong)
        assert refused.code == 2
        assert wrong[1].split(":")[0] in refused.err
